"""`deepstream`: nvinfer's configuration and labels, and a network that it supports.

nvinfer computes `net-scale-factor * (pixel - offset)` with one factor for all channels, resizes
without antialiasing, and fills a margin with black. The model's input has a standard deviation per
channel, an antialiased resize, a center crop or a gray margin. So all preprocessing is inside the
ONNX file, and nvinfer passes on the frame's pixels unchanged.

Outputs that it parses (NVIDIA's `nvdsinfer_context_impl_output_parsing.cpp` and
`nvdsinfer_customparser.cpp`): probabilities of a classifier; probabilities of every pixel; boxes in
the form of its TensorFlow SSD parser, which it suppresses itself (`cluster-mode=2`). Suppression
inside the network has an output of unknown length, which nvinfer cannot bind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporters import resize_matrix, runtimes
from exporters.bake import Candidates, Preprocessing, bake
from exporters.onnx_info import exposed, onnx_info, read_onnx
from exporters.runtimes import Outputs
from exporters.verify import require, verify
from hgkd_edge.bundles.source import Bundle, BundleSource, require_plain_names, write_labels
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.tasks.answers import decide
from hgkd_edge.tasks.suppression import SUPPRESSION

__all__ = ["BUNDLE", "config_text", "read_as_nvinfer"]

PROOF_IMAGES = 16
MODES = {"fp32": 0, "int8": 1, "fp16": 2}
TYPES = {"detect": 0, "classify": 1, "segment": 2}
# Included in DeepStream.
PARSERS = "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser.so"


def _write(source: BundleSource, folder: Path) -> Path:
    task, frame = source.subject.task, source.options.frame
    assert frame is not None  # `ExportOptions.check` asks for it
    placed = _placed(source, frame)
    post: dict[str, str | Candidates] = {
        "classify": "softmax",
        "segment": "pixel-softmax",
        "detect": Candidates(SUPPRESSION.candidates, placed),
    }
    taken = source.subject.input
    pre = Preprocessing(
        mean=taken.mean, std=taken.std, geometry=taken.geometry, frame=frame, planes=True
    )
    model = folder / "model.onnx"
    bake(source.plain, model, preprocessing=pre, postprocessing=post[task], prefix=PREFIX)
    _prove(source, model, placed)
    # A classifier's line lists the classes of one of its outputs, a detector's is one class.
    separator = ";" if task == "classify" else "\n"
    write_labels(source.subject.classes, folder / "labels.txt", separator=separator)
    batch = onnx_info(model).inputs[0].shape[0]
    text = config_text(source, frame)
    (folder / config_name(source)).write_text(text, encoding="utf-8")
    source.write_readme(
        "deepstream.md",
        folder,
        frame=frame,
        config=config_name(source),
        suppression=SUPPRESSION,
        dynamic_batch=isinstance(batch, str),
        placed=placed,
    )
    return source.plain


def config_name(source: BundleSource) -> str:
    """`config_infer_primary_NAME.txt`."""
    return f"config_infer_primary_{source.name}.txt"


def config_text(source: BundleSource, frame: tuple[int, int]) -> str:
    """nvinfer's configuration, in the format of GLib's key files."""
    task, classes = source.subject.task, len(source.subject.classes)
    own: dict[str, dict[str, Any]] = {
        "classify": {"classifier-threshold": 0, "output-blob-names": "probabilities"},
        "segment": {
            "num-detected-classes": classes,
            "segmentation-threshold": 0,
            "segmentation-output-order": 0,
            "output-blob-names": "probabilities",
        },
        "detect": {
            "num-detected-classes": classes,
            "cluster-mode": 2,
            "output-blob-names": "num_detections;detection_boxes;detection_scores;"
            "detection_classes",
            "parse-bbox-func-name": "NvDsInferParseCustomTfSSD",
            "custom-lib-path": PARSERS,
        },
    }
    height, width = frame
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "interval": 0,
        "batch-size": 1,
        "network-type": TYPES[task],
        "network-mode": MODES[source.precision],
        "onnx-file": "model.onnx",
        "labelfile-path": "labels.txt",
        "infer-dims": f"3;{height};{width}",
        "model-color-format": 0,
        "net-scale-factor": 1,
        "maintain-aspect-ratio": 0,
        **own[task],
    }
    lines = ["[property]", *(f"{key}={value}" for key, value in properties.items())]
    if task == "detect":
        rule = SUPPRESSION
        attributes = {
            "pre-cluster-threshold": rule.threshold,
            "nms-iou-threshold": rule.overlap,
            "topk": rule.limit,
        }
        lines += ["", "[class-attrs-all]", *(f"{k}={v}" for k, v in attributes.items())]
    return "\n".join(lines) + "\n"


def _placed(source: BundleSource, frame: tuple[int, int]) -> tuple[int, int]:
    """Height and width that a frame takes on the network's input."""
    if source.subject.input.geometry == "cover":
        return source.subject.input.size
    rows, columns = resize_matrix.letterbox(frame, source.subject.input.size)
    return rows.placed, columns.placed


def _prove(source: BundleSource, model: Path, placed: tuple[int, int]) -> None:
    """Compare what nvinfer would read with hgkd-edge's processing around the plain network."""
    subject, plain = source.subject, runtimes.open(source.plain).run
    run = runtimes.open(exposed(read_onnx(model), subject.output_names).SerializeToString()).run
    frames = subject.frames(PROOF_IMAGES, source.options.frame)
    classes = len(subject.classes)

    def outside(images: np.ndarray) -> Outputs:
        outputs = plain(subject.prepared(images.astype(np.uint8)))
        return {**outputs, **decide(subject.task, _within_frame(outputs, placed))}

    def inside(images: np.ndarray) -> Outputs:
        outputs = run(images.astype(np.float32).transpose(0, 3, 1, 2))
        inner = {name: outputs[name] for name in subject.output_names}
        return {**inner, **read_as_nvinfer(subject.task, outputs, placed, classes=classes)}

    # Resized pixels differ by up to two levels, as if quantized.
    proof = verify(outside, inside, frames, precision="int8")
    require(proof, model)


def _within_frame(outputs: Outputs, placed: tuple[int, int]) -> Outputs:
    """The outputs with boxes cut at the frame's edges, as nvinfer's parser cuts them."""
    if "boxes" not in outputs:
        return outputs
    height, width = placed
    return {**outputs, "boxes": outputs["boxes"].clip(0, (width, height, width, height))}


def read_as_nvinfer(
    task: str, outputs: Outputs, placed: tuple[int, int], *, classes: int
) -> dict[str, np.ndarray]:
    """nvinfer's interpretation of the outputs, in the form of `tasks.answers.decide`.

    Boxes are in pixels of the network's input, as those of `decide`.

    Args:
        task: Task of the model.
        outputs: Outputs of a batch, by name.
        placed: Height and width that a frame takes on the network's input.
        classes: Number of classes.
    """
    if task == "classify":
        return {"probabilities": outputs["probabilities"]}
    if task == "segment":
        return {"classes": outputs["probabilities"].argmax(axis=1).astype(np.int32)}
    height, width = placed
    boxes = outputs["detection_boxes"][..., [1, 0, 3, 2]] * (width, height, width, height)
    one_hot = outputs["detection_classes"].astype(int)[..., None] == np.arange(classes)
    scores = one_hot * outputs["detection_scores"][..., None]
    return decide("detect", {"boxes": boxes.astype(np.float32), "scores": scores})


BUNDLE = Bundle(
    tasks=("classify", "segment", "detect"),
    flavor="tensorrt",
    check=lambda subject: require_plain_names(subject.classes, forbidden=";"),
    write=_write,
)
