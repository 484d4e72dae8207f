"""`triton`: a model repository of NVIDIA's Triton Inference Server, and a client for it.

The configuration is derived from the ONNX file itself. Keys: Triton's `model_config.proto`.
"""

from __future__ import annotations

from pathlib import Path

from exporters.onnx_info import OnnxInfo, TensorInfo
from hgkd_edge.bundles.source import (
    Bundle,
    BundleSource,
    copy_network,
    copy_programs,
    require_plain_names,
    write_labels,
)

__all__ = ["BUNDLE", "model_config"]

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
LARGEST_BATCH = 16
LABELS = "labels.txt"
# Outputs whose values are one per class.
_CLASSES = ("logits", "probabilities", "label_logits", "label_probabilities")


def _write(source: BundleSource, folder: Path) -> Path:
    home = folder / "models" / source.name
    info = copy_network(source.baked, home / "1" / "model.onnx")
    write_labels(source.subject.classes, home / LABELS)
    largest = source.options.max_batch or LARGEST_BATCH
    config = model_config(
        source.name,
        info,
        labeled=source.subject.task in ("classify", "multilabel"),
        largest_batch=largest,
    )
    (home / "config.pbtxt").write_text(config, encoding="utf-8")
    source.write_settings(source.baked, folder)
    answers = source.subject.task != "embed"
    if answers:
        copy_programs(("client.py", "predict.py"), folder)
    source.write_readme("triton.md", folder, answers=answers, batched=_is_batched(info))
    return source.baked


def model_config(name: str, info: OnnxInfo, *, labeled: bool, largest_batch: int) -> str:
    """The text of `config.pbtxt`.

    Args:
        name: Name of the model and of its folder.
        info: The ONNX file.
        labeled: Whether the output holds one value per class.
        largest_batch: Maximum batch of dynamic batching, where the file's batch is free.
    """
    batched = _is_batched(info)
    inputs = [_tensor(tensor, batched) for tensor in info.inputs]
    outputs = [
        _tensor(tensor, batched, labels=LABELS if labeled and tensor.name in _CLASSES else "")
        for tensor in info.outputs
    ]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {largest_batch if batched else 0}",
        "input [",
        ",\n".join(inputs),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
    ]
    if batched:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 1000 }")
    return "\n".join(lines) + "\n"


def _is_batched(info: OnnxInfo) -> bool:
    """Whether requests can be batched: every tensor starts with the same free axis.

    Suppressed boxes do not: their rows belong to all images together.
    """
    axes = {tensor.shape[0] if tensor.shape else 0 for tensor in (*info.inputs, *info.outputs)}
    return len(axes) == 1 and isinstance(axes.pop(), str)


def _tensor(tensor: TensorInfo, batched: bool, *, labels: str = "") -> str:
    """One tensor's entry; if batched, Triton adds the first axis itself."""
    axes = tensor.shape[1:] if batched else tensor.shape
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in axes)
    label_file = f'\n    label_filename: "{labels}"' if labels else ""
    return (
        f'  {{\n    name: "{tensor.name}"\n    data_type: {TYPES[tensor.dtype]}\n'
        f"    dims: [ {dims} ]{label_file}\n  }}"
    )


BUNDLE = Bundle(
    tasks=("classify", "multilabel", "segment", "detect", "embed"),
    flavor="tensorrt",
    check=lambda subject: require_plain_names(subject.classes),
    write=_write,
)
