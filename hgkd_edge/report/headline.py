"""The top of the page: what a run achieved, in a few figures, and what to watch out for."""

from __future__ import annotations

from hgkd_edge.comparison.rows import Comparison
from hgkd_edge.distillation.license import license_notes, license_terms
from hgkd_edge.manifest_record import HeldOut, NetworkOrigin
from hgkd_edge.report.exports import proof_tile
from hgkd_edge.report.scores import METRICS, finetuning_of, trained_on
from hgkd_edge.report.speed import fastest_tile
from hgkd_edge.report.view import Note, Tile, Tone
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FeatureRecord, FinetuneRecord, ScoreRecord
from hgkd_edge.tables import percent

__all__ = ["headline", "warnings_of"]


def headline(run: RunDir, choice: Comparison | None) -> list[Tile]:
    """The figures that exist, the most important first.

    Args:
        run: The run.
        choice: Its files compared, where there are any.
    """
    manifest = run.manifest()
    tiles = [
        _task_tile(finetuning_of(run)),
        _feature_tile(run.evaluation()),
        _cosine_tile(manifest.held_out),
        fastest_tile(choice),
        proof_tile(run),
        _teacher_tile(manifest.teacher),
    ]
    return [tile for tile in tiles if tile is not None]


def warnings_of(run: RunDir) -> list[Note]:
    """Licenses with conditions, and warnings of the distillation."""
    manifest = run.manifest()
    warnings = manifest.result.warnings if manifest.result is not None else []
    return [Note(*lines) for lines in (license_notes(manifest), warnings) if lines]


def _cosine_tile(held_out: HeldOut | None) -> Tile | None:
    if held_out is None:
        return None
    about = f"to the teacher, held-out images; mean token {held_out.mean_token:.2f}"
    return Tile("Cosine", f"{held_out.student:.2f}", about)


def _feature_tile(evaluated: ScoreRecord | None) -> Tile | None:
    if not isinstance(evaluated, FeatureRecord):
        return None
    about = f"{trained_on(evaluated)}; untrained {percent(evaluated.untrained.knn)}"
    return Tile(METRICS["knn"], percent(evaluated.distilled.knn), about)


def _task_tile(finetuned: FinetuneRecord | None) -> Tile | None:
    if finetuned is None or not finetuned.metric:
        return None
    metric, baseline = finetuned.metric, finetuned.baseline
    against = f"; {baseline.name} {percent(baseline.score)}" if baseline else ""
    about = f"{trained_on(finetuned)}{against}"
    return Tile(METRICS.get(metric, metric), percent(finetuned.single[metric]), about)


def _teacher_tile(teacher: NetworkOrigin | None) -> Tile | None:
    if teacher is None:
        return None
    license = teacher.license or ""
    about = f"license {license}" if license else f"weights: {teacher.weights or '?'}"
    tone: Tone = "warn" if license_terms(license) else ""
    return Tile("Teacher", teacher.name or "?", about, tone)
