"""What a comparison concludes: the Pareto front, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hgkd_edge.cells import counted
from hgkd_edge.comparison.artifacts import Exports
from hgkd_edge.comparison.rows import Group, Row
from hgkd_edge.comparison.scores import Score

__all__ = ["MAX_DROP", "drops", "not_faster", "with_front"]

MAX_DROP = 1.0  # points


def with_front(rows: Sequence[Row]) -> list[Row]:
    """The rows, those on the Pareto front of score against p50 marked as such."""
    fit = [row for row in rows if row.score is not None and row.p50_ms is not None]
    return [
        replace(row, front=row in fit and not any(_beats(other, row) for other in fit))
        for row in rows
    ]


def _beats(one: Row, other: Row) -> bool:
    a, b = (one.score or 0.0, -(one.p50_ms or 0.0)), (other.score or 0.0, -(other.p50_ms or 0.0))
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def not_faster(group: Group) -> Iterator[str]:
    """INT8 files that are no faster than FP16 in the same runtime on the same device."""
    timed = [row for row in group.rows if row.p50_ms is not None]
    for int8 in (row for row in timed if row.precision == "int8"):
        for fp16 in (row for row in timed if row.precision == "fp16"):
            same = ("run", "runner", "threads", "baked", "measured")
            if all(getattr(int8, key) == getattr(fp16, key) for key in same) and (
                (int8.p50_ms or 0) >= (fp16.p50_ms or 0)
            ):
                yield (
                    f"{int8.file} is not faster than {fp16.file} in {int8.runtime} on "
                    f"{group.on.device}: p50 {int8.p50_ms:.3g} ms, FP16 {fp16.p50_ms:.3g} ms"
                )


def drops(exports: Exports, scores: Sequence[Score], max_drop: float) -> Iterator[str]:
    """Files that score more than `max_drop` points below fp32."""
    by_runtime = {(one.sha256, one.runtime): one for one in scores}
    base = by_runtime.get((exports.reference.sha256, "ort-cpu")) or by_runtime.get(
        (exports.weights.sha256, "torch")
    )
    for artifact in exports.artifacts:
        score = by_runtime.get((artifact.sha256, artifact.runtime))
        if base is None or score is None or artifact.precision == "fp32":
            continue
        drop = base.points - score.points
        if drop > max_drop:
            yield (
                f"{artifact.file.name} in {score.runtime} loses {drop:.2f} points of "
                f"{score.metric} on {counted(score.on.images, 'image')}: {score.points:.2f}, fp32 "
                f"{base.points:.2f} (--max-drop {max_drop:g})"
            )
