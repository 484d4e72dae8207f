"""nn.Module -> ONNX -> TensorRT / OpenVINO, each step verified. Imports nothing from hgkd_edge."""
