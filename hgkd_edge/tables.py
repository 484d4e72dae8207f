"""Results as tables and lines, for a terminal of 80 columns and for the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hgkd_edge.cells import counted
from hgkd_edge.export_record import Accuracy, ExportedFile, ExportRecord, Proof
from hgkd_edge.score_records import FeatureRecord, ScoreRecord, TaskRecord

if TYPE_CHECKING:
    from hgkd_edge.pipeline import PipelineTimes

__all__ = [
    "export_lines",
    "label_tables",
    "percent",
    "pipeline_lines",
    "score_table",
    "stage_table",
    "task_table",
    "warning_lines",
]

_WORST_LAYERS = 10


def score_table(result: FeatureRecord) -> Table:
    """k-NN and linear probe of the distilled backbone next to its baselines."""
    intervals = result.intervals
    title = f"top-1 accuracy on {counted(result.count, 'image')} of the {result.split} split"
    table = Table(title=title, caption=_caption(result), min_width=len(title))
    for column in ("features", "k-NN", "linear probe"):
        table.add_column(column, justify="left" if column == "features" else "right")
    for name, scores, ranges in (
        ("distilled", result.distilled, intervals.distilled),
        ("untrained", result.untrained, intervals.untrained),
    ):
        probed = percent(scores.linear_probe, ranges.linear_probe)
        table.add_row(name, percent(scores.knn, ranges.knn), probed)
    majority = percent(result.majority, intervals.majority)
    table.add_row("majority class", majority, majority)
    return table


def task_table(result: TaskRecord) -> Table:
    """Scores of a fine-tuned model on held-out images."""
    title = f"{result.task} on {counted(result.count, 'image')} of the {result.split} split"
    intervals = result.intervals
    table = Table("score", title=title, caption=_caption(result), min_width=len(title))
    table.add_column("value", justify="right")
    for name, value in result.single.items():
        table.add_row(name, percent(value, intervals.single.get(name)))
    if baseline := result.baseline:
        table.add_row(f"baseline: {baseline.name}", percent(baseline.score))
    if result.scores is not None and result.scores.per_label:
        return table  # `label_table` has the classes
    for name, value in result.per_class.items():
        table.add_row(f"  {name}", percent(value, intervals.per_class.get(name)))
    return table


def label_tables(result: TaskRecord) -> list[Table]:
    """Scores of each class where images have several labels, else nothing."""
    if result.scores is None or not result.scores.per_label:
        return []
    table = Table("class")
    for column in ("images", "AP", "precision", "recall", "F1"):
        table.add_column(column, justify="right")
    for name, one in result.scores.per_label.items():
        average = "-" if one.average_precision is None else percent(one.average_precision)
        rates = map(percent, (one.precision, one.recall, one.f1))
        table.add_row(Text(name), f"{one.images:,}", average, *rates)
    return [table]


def stage_table(stages: Mapping[str, Mapping[str, float]]) -> Table:
    """Milliseconds by stage of a pipeline, as `Stages.summary` gives them."""
    table = Table("stage", title="milliseconds per frame", min_width=40)
    for column in ("mean", "p50", "p99"):
        table.add_column(column, justify="right")
    for stage, times in stages.items():
        table.add_row(stage, *(f"{times[key]:.2f}" for key in ("mean", "p50", "p99")))
    return table


def pipeline_lines(found: PipelineTimes) -> list[Table | str]:
    """Milliseconds by stage, and the rate of the whole pipeline next to the network's."""
    whole = f"{found.frames_per_s:.1f} frames/s from file to prediction"
    return [
        stage_table(found.stages),
        f"{whole}, {found.infer_frames_per_s:.1f} by the network alone",
    ]


def warning_lines(warnings: Iterable[str]) -> list[Text]:
    """The warnings of a result."""
    return [Text(f"warning: {line}", style="yellow") for line in warnings]


def percent(share: float, interval: Sequence[float] | None = None) -> str:
    """A share as `12.3 %`, with its interval in brackets."""
    shown = f"{100 * share:.1f} %"
    if interval is None:
        return shown
    low, high = interval
    return f"{shown} ({100 * low:.1f} to {100 * high:.1f})"


def _caption(result: ScoreRecord) -> str | None:
    return f"in brackets: {result.interval_method}" if result.interval_method else None


def export_lines(result: ExportRecord) -> Iterator[str]:
    """Every file with its verification, and the layers that INT8 keeps in float."""
    if on := result.verified_on:
        yield f"verified on {counted(on.photos, 'image')} of the {on.split} split"
    for file in result.files:
        yield from _file_lines(file)
    for bundle in result.bundles:
        yield f"bundle {bundle.bundle}: {bundle.path} (start with its README.md)"
    for flavor, layers in result.sensitivity.items():
        yield f"most damaging layers in INT8 ({flavor}):"
        for layer in layers[:_WORST_LAYERS]:
            yield f"  {layer.damage:.3f} {layer.module}"


def _file_lines(file: ExportedFile) -> Iterator[str]:
    flavor = f" {file.flavor}" if file.flavor else ""
    size = file.size_bytes / 2**20
    yield f"{file.kind} {file.precision}{flavor}: {file.path} ({size:.1f} MiB)"
    if file.verification:
        yield f"  {_proof(file.verification)}"
    if file.accuracy:
        yield from _accuracy_lines(file.accuracy)
    if file.kind == "engine":
        yield f"  {file.backend} {file.version}, {file.device}"
        if file.backend == "tensorrt_rtx":
            yield "  for RTX desktop GPUs, not for a Jetson: --bundle jetson builds there"


def _proof(proof: Proof) -> str:
    parts = []
    if proof.max_abs_error is not None:
        parts.append(f"max error {proof.max_abs_error:.1e}")
        parts.append(f"cosine {proof.cosine:.6f}")
    if proof.noise is not None and proof.precision == "int8":
        parts.append(f"error {proof.noise:.3f} of the spread")
    if proof.top1_agreement is not None:
        parts.append(f"same class {percent(proof.top1_agreement)}")
    if proof.iou is not None:
        parts.append(f"IoU {proof.iou:.3f}")
    return "agrees: " + ", ".join(parts)


def _accuracy_lines(accuracy: Accuracy) -> Iterator[str]:
    yield (
        f"  {accuracy.metric} {accuracy.score:.2f}, in float {accuracy.float_score:.2f}: "
        f"a drop of {accuracy.drop:.2f} points (at most {accuracy.max_drop:g})"
    )
    yield f"  kept in float: {', '.join(accuracy.kept_float) or 'nothing'}"
