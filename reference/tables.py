"""The references that are tables in the code: tolerances, devices, ONNX metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from exporters.tolerances import TOLERANCES
from hgkd_edge.bench.devices import Device, device_table
from hgkd_edge.data.input_spec import InputSpec
from reference.markdown import code, table

# What `export` writes into an ONNX file next to the entries that describe the input.
METADATA: Mapping[str, str] = {
    "task": "`classify`, `multilabel`, `segment`, `detect`, or `embed` for a bare backbone",
    "model": "name of the timm model",
    "classes": "class names in the order of the outputs",
    "threshold": "`multilabel`: the lowest probability of a label",
    "weights_sha256": "sha256 of the weights file that the network was exported from",
    "backbone_sha256": "the same, for a bare backbone only",
    "run": "name of the run folder",
    "baked": "processing inside the file: `preprocessing`, `postprocessing`, or both",
    "frame": "height and width of the input frames (`--frame`)",
}
INPUT: Mapping[str, str] = {
    "input_size": "channels, height, width of the network's input",
    "mean": "per channel (RGB), subtracted from values in [0, 1]",
    "std": "per channel, divided by",
    "preprocessing": "the steps as data",
    "preprocessing_python": "the steps as code for numpy and Pillow",
}
_SUPER = "gpu_mhz", "bandwidth_gbs", "fp16_tflops", "int8_tops"


def tolerances() -> str:
    """The bounds that exported files are checked against."""
    keys = [field.name for field in fields(next(iter(TOLERANCES.values())))]
    rows = [
        (
            code(name),
            *("-" if getattr(bound, key) is None else f"{getattr(bound, key):g}" for key in keys),
        )
        for name, bound in TOLERANCES.items()
    ]
    return f"""# Tolerances

The bounds that an exported file must keep (`exporters.tolerances.TOLERANCES`), by precision. `-`
means that the figure
is not checked. Why these bounds: [Proof](../proof.md).

{table(("precision", *map(code, keys)), rows)}
::: exporters.tolerances.Tolerance
"""


def devices() -> str:
    """Known boards, their power modes and JetPack releases."""
    known = device_table().devices
    heads = (
        "id",
        "name",
        "SMs",
        "compute capability",
        "GPU MHz",
        "GB/s",
        "FP16 TFLOPS",
        "INT8 TOPS",
    )
    boards = [
        (code(one.id), one.name, str(one.sms), one.compute_capability, *_figures(one))
        for one in known
    ]
    modes = [
        (
            code(one.id),
            str(mode.id),
            mode.name + " (super)" * mode.super_,
            str(mode.gpu_mhz),
            str(mode.emc_mhz or ""),
            "yes" * mode.default,
        )
        for one in known
        for mode in one.modes
    ]
    jetpacks = [
        (one.jetpack, one.l4t, *(_doubtful(one, key) for key in ("cuda", "tensorrt", "python")))
        for one in device_table().jetpacks
    ]
    sources = "\n".join(f"- `{name}`: {text}" for name, text in device_table().sources.items())
    return f"""# Devices

What `bench` knows about Jetson boards (`hgkd_edge/bench/devices.yaml`). `--estimate` computes with
these figures, and
`bench --device jetson` recognizes boards by them. None of them was measured with this tool.

Peaks are dense, for the GPU alone. Figures after `/` are those of the "super" configuration. `?`
marks a figure
without a primary source.

{table(heads, boards)}
## Power modes

A power mode is a set of clock caps, not a guaranteed wattage. "default" is the mode after boot.

{table(("device", "id", "mode", "GPU MHz", "memory MHz", "default"), modes)}
## JetPack releases

{table(("JetPack", "L4T", "CUDA", "TensorRT", "Python"), jetpacks)}
## Sources

`hgkd-edge devices --json` names the source of each figure.

{sources}
"""


def metadata() -> str:
    """The entries of an exported ONNX file."""
    cover = InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "cover")
    letterbox = InputSpec((320, 320), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "letterbox")
    return f"""# ONNX metadata

`hgkd-edge export` writes these entries into every ONNX file (`metadata_props`). Each key starts
with `hgkd_edge.`, and
each value is JSON. `predict`, `evaluate` and the bundles read them.

{table(("key", "value"), [(code(key), text) for key, text in {**METADATA, **INPUT}.items()])}
Read them with:

```python
import json, onnx

entries = {{entry.key: json.loads(entry.value) for entry in onnx.load("net.onnx").metadata_props}}
print(entries["hgkd_edge.classes"])
```

## `preprocessing`

For a classifier or a backbone:

{_example(cover)}
For segmentation and detection:

{_example(letterbox)}
`geometry: cover` resizes until the image covers the input, then crops the center. `letterbox`
resizes until the image
fits and fills the rest with gray. `bits` is present for images of 16 bits per sample that use
fewer bits. See
[Preprocessing](../export.md#preprocessing).

## `preprocessing_python`

```python
{cover.snippet().strip()}
```
"""


def _example(spec: InputSpec) -> str:
    return f"```json\n{json.dumps(spec.metadata()['preprocessing'], indent=2)}\n```\n"


def _figures(device: Device) -> list[str]:
    """The four figures that a "super" configuration raises."""
    own = [_doubtful(device, key) for key in _SUPER]
    if device.super_ is None:
        return own
    raised = [f"{getattr(device.super_, key):g}" for key in _SUPER]
    return [f"{low} / {high}" for low, high in zip(own, raised, strict=True)]


def _doubtful(entry: Any, key: str) -> str:
    value = getattr(entry, key)
    text = f"{value:g}" if isinstance(value, (int, float)) else value or "-"
    return text + "?" * (key in entry.unconfirmed)
