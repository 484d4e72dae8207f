"""Recorded scores, each with the digest of its file and the images it was computed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hgkd_edge.comparison.artifacts import Artifact, Exports
from hgkd_edge.errors import RunError
from hgkd_edge.export_record import MOST_SCORED, Accuracy, read_exports
from hgkd_edge.files import write_json
from hgkd_edge.records import Images
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import EvaluationRecord, TaskRecord

__all__ = ["Images", "Score", "keep_scores", "most_used", "recorded_scores"]

_RUNTIMES = {
    "PyTorch": "torch",
    "ONNX Runtime": "ort-cpu",
    "OpenVINO": "openvino",
    "TensorRT": "tensorrt",
}


class Score(BaseModel):
    """The score of a file in a runtime.

    Attributes:
        sha256: Digest of the network.
        runtime: As a runner of `bench` is named.
        metric: `top1`, `miou`, ...
        points: The score, 0 to 100.
        on: The images.
        by: The command that computed it.
        machine: The CPU it was computed on; empty if not recorded.
        cosine: Least cosine of the outputs with those of the fp32 ONNX file, where compared.
        top1_agreement: Share of images (pixels, confident anchors) with the same best class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    runtime: str
    metric: str
    points: float
    on: Images
    by: Literal["finetune", "evaluate", "export", "compare"]
    machine: str = ""
    cosine: float | None = None
    top1_agreement: float | None = None


class _Kept(BaseModel):
    """The content of `scores.json`."""

    scores: list[Score]


def recorded_scores(run: RunDir, exports: Exports) -> list[Score]:
    """Every recorded score of the run's current files.

    Later ones of the same file, runtime and images replace earlier ones.

    Raises:
        RunError: A record is damaged.
    """
    try:
        found = [*_finetuned(run, exports), *_exported(run, exports)]
        found += [*_evaluated(run), *_compared(run)]
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"run '{run.path}': a record of scores is damaged",
            hint=f"take them again: rm -f {run.quoted}/scores.json {run.quoted}/evaluation.json; "
            f"hgkd-edge compare {run.quoted}",
        ) from error
    there = {artifact.sha256 for artifact in exports.artifacts}
    latest = {(one.sha256, one.runtime, one.on): one for one in found if one.sha256 in there}
    return list(latest.values())


def keep_scores(run: RunDir, scores: Iterable[Score]) -> None:
    """Write `scores.json`: scores computed by `compare`, so that they are computed once."""
    write_json(run.scores_file, {"scores": [one.model_dump(mode="json") for one in scores]})


def most_used(scores: Sequence[Score]) -> Images | None:
    """The images that most of the scores were computed on; None if there are no scores."""
    counted = Counter(one.on for one in scores).most_common(1)
    return counted[0][0] if counted else None


def _finetuned(run: RunDir, exports: Exports) -> Iterator[Score]:
    weights = exports.weights
    result, recorded = run.finetune_result(), run.recorded_sha256(run.model_file)
    if result is None or not result.single or weights.file != run.model_file:
        return
    if recorded != weights.sha256 or result.photos > MOST_SCORED:
        return
    data = run.manifest().labeled_data.get(result.split)
    if data is not None:
        yield _score(result, weights, "torch", data.fingerprint, "finetune")


def _evaluated(run: RunDir) -> Iterator[Score]:
    result = run.evaluation()
    if isinstance(result, EvaluationRecord) and result.sha256 and result.photos <= MOST_SCORED:
        runtime = _RUNTIMES.get(result.runtime, result.runtime)
        yield _score(result, result.sha256, runtime, result.fingerprint, "evaluate")


def _score(
    result: TaskRecord,
    network: Artifact | str,
    runtime: str,
    fingerprint: str,
    by: Literal["finetune", "evaluate"],
) -> Score:
    return Score(
        sha256=network if isinstance(network, str) else network.sha256,
        runtime=runtime,
        metric=result.metric,
        points=100 * result.single[result.metric],
        on=Images(split=result.split, images=result.photos, fingerprint=fingerprint),
        by=by,
    )


def _exported(run: RunDir, exports: Exports) -> Iterator[Score]:
    """Scores from `export --max-drop`: of each INT8 file, and of its fp32 file."""
    by_name = {artifact.file.name: artifact for artifact in exports.artifacts}
    for file in read_exports(run).files:
        artifact, accuracy = by_name.get(file.name), file.accuracy
        if artifact is None or accuracy is None or accuracy.on is None:
            continue
        yield _of_export(artifact, accuracy, accuracy.score, accuracy.on)
        if file.made_from == exports.reference.file.name:
            yield _of_export(exports.reference, accuracy, accuracy.float_score, accuracy.on)


def _of_export(artifact: Artifact, accuracy: Accuracy, points: float, on: Images) -> Score:
    return Score(
        sha256=artifact.sha256,
        runtime="ort-cpu",
        metric=accuracy.metric,
        points=points,
        on=on,
        by="export",
    )


def _compared(run: RunDir) -> Iterator[Score]:
    if run.scores_file.is_file():
        yield from _Kept.model_validate(run.read_json(run.scores_file)).scores
