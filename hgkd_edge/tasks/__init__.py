"""The uses of a distilled backbone: classification, segmentation, detection.

Each task is one module with one `VisionTask`; `hgkd_edge.finetune` refers to them only by name.
"""
