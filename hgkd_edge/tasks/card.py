"""The model card: describes a fine-tuned model to its recipients."""

from __future__ import annotations

import re

from hgkd_edge.cells import counted
from hgkd_edge.console import printable
from hgkd_edge.data.resize import Geometry
from hgkd_edge.score_records import FinetuneRecord
from hgkd_edge.tasks.base import ModelCard
from hgkd_edge.tasks.config import FinetuneConfig

__all__ = ["model_card"]

MARKUP = re.compile(r"[\\`*_{}\[\]<>()#!|~&:]")
GEOMETRIES: dict[Geometry, str] = {
    "cover": "resized (bilinear, antialiased) until it covers the input, center cropped",
    "letterbox": "resized (bilinear, antialiased) until it fits, top left on gray (114)",
}


def model_card(
    card: ModelCard, config: FinetuneConfig, result: FinetuneRecord, *, photos: int
) -> str:
    """Markdown: task, classes, preprocessing, training, scores.

    Args:
        card: The model's card.
        config: The fine-tuning settings.
        result: The result of `finetune`.
        photos: Number of training images.
    """
    spec = card.backbone
    height, width = spec.size
    begun = {
        "distilled": "the run's distilled backbone",
        "timm": "timm's pre-trained weights",
        "scratch": "untrained weights",
    }[config.init]
    if config.qat is not None:
        begun = "the fine-tuned model, with INT8 simulated (quantization-aware)"
    lines = [
        f"# {spec.name}, {card.task}",
        "",
        f"- **Classes** ({len(card.classes)}): {', '.join(map(_plain, card.classes))}",
        f"- **Input**: RGB, {height} x {width} px (height x width), values in [0, 1], then "
        f"minus mean {_figures(spec.mean)}, divided by standard deviation {_figures(spec.std)}",
        f"- **Geometry**: {GEOMETRIES[card.input.geometry]}",
        f"- **Network**: timm's `{spec.name}`, arguments {spec.args or 'as published'}"
        + (f", stem stride {spec.stem_stride} instead of timm's 4" if spec.stem_stride != 4 else "")
        + "; `hgkd_edge.finetune.load_model` makes it again from the file alone",
        f"- **Training**: {counted(photos, 'image')}, {counted(config.train.epochs, 'epoch')} "
        f"from {begun}, seed {config.seed}; all settings in `finetune.yaml`",
    ]
    if card.threshold is not None:
        lines.insert(
            3, f"- **Labels**: each by itself: those whose sigmoid is at least {card.threshold:g}"
        )
    lines += ["", *_scores(result)]
    lines += ["", "## Preprocessing", "", "```python", card.input.snippet() + "```", ""]
    return "\n".join(lines)


def _scores(result: FinetuneRecord) -> list[str]:
    if not result.single:
        return ["No images were held out, so there are no scores."]
    images = counted(result.photos, "image")
    lines = [f"## Scores on the {images} of the `{result.split}` split", ""]
    lines += [
        f"- {name}: {value:.4f}" + _interval(result.intervals.single.get(name))
        for name, value in result.single.items()
    ]
    if classes := result.per_class:
        lines += ["", "| class | score |", "|---|---:|"]
        lines += [f"| {_plain(name)} | {value:.4f} |" for name, value in classes.items()]
    return lines


def _plain(name: str) -> str:
    """A class name as plain text: it comes from the data, and could be Markdown."""
    return MARKUP.sub(r"\\\g<0>", printable(name))


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f" (95 % interval {bounds[0]:.4f} to {bounds[1]:.4f})"


def _figures(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
