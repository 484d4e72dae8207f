"""Compute missing scores: each file in its runtime, on the held-out images of its run."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporters import runtimes
from exporters.errors import UserError
from exporters.runtimes import Runner
from exporters.verify import verify
from hgkd_edge.bench.environment import environment
from hgkd_edge.comparison.artifacts import Artifact, Exports
from hgkd_edge.comparison.scores import Images, Score
from hgkd_edge.console import track_steps
from hgkd_edge.files import engines_dir

if TYPE_CHECKING:
    import numpy as np

    from hgkd_edge.exportable import Exportable

__all__ = ["Judged", "judge"]

_AGREEMENT_IMAGES = 64  # same number as in export's verification


@dataclass(frozen=True)
class Judged:
    """The scores of a run on one set of images, and the unscored files with reasons."""

    scores: list[Score]
    remarks: list[str]


def judge(exports: Exports, recorded: Sequence[Score], on: Images | None) -> Judged:
    """Score every file that has no recorded score on the run's held-out images.

    Args:
        exports: The files of a run.
        recorded: Scores that are known.
        on: The images that most of them were computed on.

    Returns:
        Recorded and new scores, all on the same images.
    """
    known = [one for one in recorded if one.on == on]
    if not _missing(exports, known):
        return Judged(known, [])
    run = exports.weights.run
    if importlib.util.find_spec("torch") is None:
        return Judged(known, ['scores are taken by PyTorch: pip install "hgkd-edge[train]"'])
    from hgkd_edge.exportable import load_exportable

    try:
        subject = load_exportable(run)
    except UserError as error:
        return Judged(known, [f"{run.path}: files without a score: {error.message}"])
    if subject.scored_on is None:
        return Judged(
            known, [f"{run.path}: no images that can be scored were held out (data.holdout)"]
        )
    images, remarks = subject.scored_on, []
    if on is not None and images != on:
        remarks = [f"{run.path}: its images have changed, so every file is scored again"]
    known = [one for one in recorded if one.on == images]
    found, failed = _score_all(exports, _missing(exports, known), subject, images)
    return Judged([*known, *found], [*remarks, *failed])


def _missing(exports: Exports, known: Sequence[Score]) -> list[Artifact]:
    """Files without a score in the runtime that they are deployed with."""
    there = {(one.sha256, one.runtime) for one in known}
    return [
        artifact
        for artifact in exports.artifacts
        if not artifact.baked and (artifact.sha256, artifact.runtime) not in there
    ]


def _score_all(
    exports: Exports, missing: Sequence[Artifact], subject: Exportable, on: Images
) -> tuple[list[Score], list[str]]:
    found, failed = [], []
    probe = subject.images(subject.unseen, _AGREEMENT_IMAGES)
    machine = environment().cpu or "unknown machine"
    with track_steps("scoring", total=len(missing)) as show:
        for step, artifact in enumerate(missing):
            try:
                found.append(_score(exports, artifact, subject, on, probe, machine))
            except UserError as error:
                failed.append(f"{artifact.file}: not scored: {error.message}")
            show(step + 1, artifact.file.name)
    return found, failed


def _score(
    exports: Exports,
    artifact: Artifact,
    subject: Exportable,
    on: Images,
    probe: np.ndarray,
    machine: str,
) -> Score:
    runner = _open(artifact, subject)
    # Only the figures are used: export has already checked them against its bounds.
    agreement = verify(runtimes.open(exports.reference.file).run, runner, probe, precision="int8")
    return Score(
        sha256=artifact.sha256,
        runtime=artifact.runtime,
        metric=subject.metric,
        points=subject.score(runner),
        on=on,
        by="compare",
        machine=machine,
        cosine=agreement.cosine,
        top1_agreement=agreement.top1_agreement,
    )


def _open(artifact: Artifact, subject: Exportable) -> Runner:
    """Images f32[B, 3, H, W] -> named outputs, in the runtime of the file."""
    if artifact.runtime == "torch":
        return runtimes.open(subject.network, names=subject.output_names).run
    source = artifact.file.with_suffix(".onnx") if artifact.runtime == "tensorrt" else None
    return runtimes.open(artifact.file, made_from=source, built_here=engines_dir()).run
