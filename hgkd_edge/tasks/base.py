"""The interface of a task for `finetune`, and how a fine-tuned model is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from exporters.runtimes import Outputs
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Training
from hgkd_edge.errors import DataError, RunError, reason_of
from hgkd_edge.files import atomic_write
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.models.untrusted import not_finite
from hgkd_edge.parsing import brief, parse_json
from hgkd_edge.run_files import require_recorded
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks.answers import GEOMETRY, as_threshold
from hgkd_edge.tasks.config import FinetuneConfig

__all__ = ["Answers", "ModelCard", "VisionTask", "read_model", "save_model"]


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to create a fine-tuned network again and to interpret its outputs.

    Attributes:
        task: `classify`, `multilabel`, `segment` or `detect`.
        classes: Class names in the order of the outputs.
        backbone: Architecture, image size and normalization.
        input_ranges: Of a quantization-aware network: the largest magnitude of each INT8 layer's
            input, by the layer's name. The weights are rounded to INT8. Empty for other networks.
        threshold: `multilabel`: the lowest probability of a label. None for other tasks.
    """

    task: str
    classes: tuple[str, ...]
    backbone: BackboneSpec
    input_ranges: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None

    @property
    def input(self) -> InputSpec:
        """The network's input size and preprocessing."""
        return self.backbone.input(GEOMETRY.get(self.task, "cover"))

    def require_classes(self, source: ImageSource) -> None:
        """Refuse to score on images of other classes: labels are numbers in their order.

        Raises:
            DataError: The images' classes are not the model's.
        """
        if tuple(source.classes) != self.classes:
            raise DataError(
                f"the images have classes {', '.join(source.classes)}, "
                f"the model has {', '.join(self.classes)}",
                hint="name images with the classes that the model was fine-tuned on",
            )


class VisionTask(Protocol):
    """One task: its data, its network, its loss, its scores.

    Attributes:
        name: As in `--task`.
        output_names: Names of the network's outputs, also in ONNX.
        metric: The main score; higher is better.
    """

    name: str
    output_names: tuple[str, ...]
    metric: str

    def open_splits(self, config: FinetuneConfig) -> dict[str, ImageSource]:
        """Training and held-out images with the task's labels.

        Raises:
            DataError: There are no images, or they have no labels.
        """
        ...

    def create(self, card: ModelCard) -> nn.Module:
        """The untrained network: normalized images f[B, 3, H, W] -> tensors by `output_names`."""
        ...

    def fill(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Load a backbone's weights, named as in the plain timm model, into the network."""
        ...

    def learner(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> Training:
        """The module that the engine trains; its `model.network` is `network`."""
        ...

    def view(self, images: Tensor, card: ModelCard) -> Tensor:
        """The network's view of canvases uint8 [B, 3, H_c, W_c]: float [B, 3, H, W]."""
        ...

    def judge(
        self, answers: Iterable[Answers], card: ModelCard, pictures: Path | None = None
    ) -> TaskScores:
        """Score a network's outputs, from any runtime, in one pass over the images.

        Args:
            answers: Batches of images, labels and outputs.
            card: The model's card.
            pictures: Folder for images for visual inspection, or None.

        Returns:
            The task's scores, `metric` among them.
        """
        ...


class Answers(NamedTuple):
    """One batch of images and a network's outputs for it.

    Attributes:
        images: uint8 [B, 3, H_canvas, W_canvas].
        labels: The task's labels, [B, ...].
        outputs: By output name, float32 [B, ...].
    """

    images: Tensor
    labels: Tensor
    outputs: Outputs


def save_model(network: nn.Module, card: ModelCard, path: Path) -> None:
    """Write a fine-tuned network as safetensors, with its card in the file's metadata."""
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "hgkd_edge.model": _to_json(card)})


def read_model(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """State dict and card of a `model.safetensors`.

    Raises:
        RunError: The file was not written by hgkd-edge, is broken, or is not the recorded one.
    """
    require_recorded(path)
    try:
        with safe_open(path, framework="pt") as stored:
            card = _from_json((stored.metadata() or {})["hgkd_edge.model"])
            state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if damaged := not_finite(state):
            raise ValueError(f"'{damaged}' holds NaN or infinity")
        return state, card
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is not a fine-tuned model of hgkd-edge: {reason_of(error)}",
            hint="make one: hgkd-edge finetune",
        ) from error


def _to_json(card: ModelCard) -> str:
    fields = asdict(card)
    if card.threshold is None:
        del fields["threshold"]
    return json.dumps(fields)


def _from_json(text: str) -> ModelCard:
    fields = parse_json(text)
    task, classes = fields["task"], fields["classes"]
    if task not in GEOMETRY or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"its metadata gives no usable task ({brief(task)}) or classes")
    backbone = BackboneSpec.from_metadata({"hgkd_edge.backbone": json.dumps(fields["backbone"])})
    ranges = {str(name): float(size) for name, size in fields.get("input_ranges", {}).items()}
    if not all(math.isfinite(size) and size >= 0 for size in ranges.values()):
        raise ValueError("its metadata gives no usable ranges of its layers' inputs")
    threshold = as_threshold(fields["threshold"]) if task == "multilabel" else None
    return ModelCard(task, tuple(classes), backbone, ranges, threshold)
