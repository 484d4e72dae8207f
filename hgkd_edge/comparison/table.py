"""Rows by device, the Pareto front of each device, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hgkd_edge.bench.environment import environment
from hgkd_edge.bench.records import Measurement, Session, load_bench
from hgkd_edge.comparison.artifacts import Artifact, Exports, artifacts_of
from hgkd_edge.comparison.judge import Judged, judge
from hgkd_edge.comparison.scores import Score, keep_scores, most_used, recorded_scores
from hgkd_edge.errors import RunError
from hgkd_edge.rundir import RunDir

__all__ = ["MAX_DROP", "Comparison", "Group", "Row", "compare_runs", "sessions_of", "timed_here"]

MAX_DROP = 1.0  # points

_Scores = Mapping[tuple[str, str], Score]  # by digest and runtime


@dataclass(frozen=True)
class Row:
    """One file in one runtime on one device.

    Attributes:
        run: Folder of its run.
        file: Name of the file.
        runner: As `bench` names it; `torch` for the weights.
        threads: Number of threads, where one was set.
        precision: Of the computation.
        exported: Of the file: a device may build an engine of another precision from it.
        sha256: Digest of the network: score, times and size are all of this one.
        size_mb: All its files, MiB.
        score: Points, 0 to 100; None if not computed.
        scored_by: Command, runtime and machine of the score.
        score_elsewhere: The score was computed in another runtime, or on another machine, than the
            times; the outputs were verified against the file's before they were timed.
        cosine: Agreement with the fp32 network: the least cosine of the outputs.
        top1_agreement: The same as a share of images with the same best class.
        p50_ms, p99_ms, throughput_ips: As `bench` measured; None where it did not.
        noisy: The times spread or drifted too much for a fine comparison.
        measured: When.
        baked: Processing is part of the file.
        front: No other row of the device is as good and faster, or as fast and better.
    """

    run: str
    file: str
    runner: str
    precision: str
    exported: str
    sha256: str
    size_mb: float
    threads: int | None = None
    score: float | None = None
    scored_by: str = ""
    score_elsewhere: bool = False
    cosine: float | None = None
    top1_agreement: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    throughput_ips: float | None = None
    noisy: bool = False
    measured: str = ""
    baked: bool = False
    front: bool = False

    @property
    def runtime(self) -> str:
        """Runner, precision and threads as text, without the obvious defaults."""
        built = f" {self.precision}" if self.precision != self.exported else ""
        return f"{self.runner}{built}" + (f" t{self.threads}" if self.threads else "")


@dataclass(frozen=True)
class Circumstances:
    """What rows must share to be compared: device, batch, the timed operations, the scored images.

    Attributes:
        device: Machine, and what of it; empty for rows that were not timed on this machine.
        batch: Images per inference.
        copies: Whether the time covers copying inputs and outputs: `in` or `out`.
        metric: Name of the score.
        split, images, fingerprint: What was scored.
    """

    device: str = ""
    batch: int = 0
    copies: str = ""
    metric: str = ""
    split: str = ""
    images: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that can be compared with each other."""

    on: Circumstances
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """Groups by device, with untimed rows last; warnings; and missing rows, with reasons."""

    runs: list[str]
    max_drop: float
    groups: list[Group]
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return asdict(self)


def compare_runs(
    runs: Sequence[RunDir], *, score: bool = True, max_drop: float = MAX_DROP
) -> Comparison:
    """Every exported file in every runtime that it was timed in, or that runs on this machine.

    Args:
        runs: Compared side by side.
        score: Score the files that have no recorded score, and keep the scores in the run.
        max_drop: Points that a file may score below fp32 without a warning.

    Raises:
        RunError: A run has nothing exported, or one of its records is damaged.
    """
    placed: list[tuple[Circumstances, Row]] = []
    warnings: list[str] = []
    remarks: list[str] = []
    for run in runs:
        exports = _require(run, artifacts_of(run))
        judged = _judged(run, exports, score=score)
        rows, about = _rows(run, exports, judged.scores)
        placed += rows
        warnings += _drops(exports, judged.scores, max_drop)
        remarks += [*exports.remarks, *judged.remarks, *about]
    groups = [
        Group(on, _with_front([row for other, row in placed if other == on]))
        for on in sorted(dict.fromkeys(on for on, _ in placed), key=lambda on: not on.device)
    ]
    warnings = [*(line for group in groups for line in _not_faster(group)), *warnings]
    return Comparison([str(run.path) for run in runs], max_drop, groups, warnings, remarks)


def _require(run: RunDir, exports: Exports) -> Exports:
    if not exports.artifacts:
        raise RunError(
            f"run '{run.path}' has nothing to compare: {'; '.join(exports.remarks)}",
            hint=f"hgkd-edge export {run.quoted} --precision int8 --openvino",
        )
    return exports


def timed_here(session: Session) -> bool:
    """Whether a session was measured on this machine."""
    return _machine(session) == environment().cpu and not session.is_remote


def _judged(run: RunDir, exports: Exports, *, score: bool) -> Judged:
    recorded = recorded_scores(run, exports)
    on = most_used(recorded)
    if not score:
        return Judged([one for one in recorded if one.on == on], [])
    judged = judge(exports, recorded, on)
    new = [one for one in judged.scores if one not in recorded]
    if new:
        keep_scores(run, [one for one in judged.scores if one.by == "compare"])
    return judged


def _rows(
    run: RunDir, exports: Exports, scores: Sequence[Score]
) -> tuple[list[tuple[Circumstances, Row]], list[str]]:
    """Rows of a run, each with its conditions; and the skipped files, with reasons."""
    by_digest = {artifact.sha256: artifact for artifact in exports.artifacts}
    by_runtime = {(one.sha256, one.runtime): one for one in scores}
    scored = _scored(scores)
    rows, remarks, here = [], [], set()
    for session in sessions_of(run):
        digests = {model.label: model.sha256 for model in session.models}
        for one in session.measurements:
            artifact = by_digest.get(digests.get(one.model, ""))
            if why := _not_a_row(one, artifact):
                remarks.append(f"{one.case} on {_device(session, one)}: {why}")
                continue
            assert artifact is not None, "else there is a reason"
            circumstances = replace(
                scored, device=_device(session, one), batch=one.batch, copies=one.copies
            )
            rows.append((circumstances, _timed(artifact, session, one, by_runtime)))
            if timed_here(session):
                here.add((artifact.sha256, _runtime(one.runner)))
    for artifact in exports.artifacts:
        if (artifact.sha256, artifact.runtime) not in here:
            rows.append((scored, _untimed(artifact, by_runtime)))
    return rows, remarks


def _scored(scores: Sequence[Score]) -> Circumstances:
    """The part of the conditions that is the same for all rows of a run."""
    if not scores:
        return Circumstances()
    return Circumstances(metric=scores[0].metric, **scores[0].on.model_dump())


def sessions_of(run: RunDir) -> list[Session]:
    """What `bench` has recorded in a run.

    Raises:
        RunError: It is damaged.
    """
    bench = run.own(run.bench_file)
    return load_bench(bench).sessions if bench.is_file() else []


def _not_a_row(one: Measurement, artifact: Artifact | None) -> str:
    """Why a measurement is skipped; '' if it is not."""
    if one.runner.startswith("torch"):
        return "PyTorch was timed on the bare backbone, not on an exported file"
    if artifact is None:
        return "its file has changed since, or is gone; measure again: hgkd-edge bench"
    if one.computed_wrong:
        return "it computed wrong outputs"
    return ""


def _device(session: Session, one: Measurement) -> str:
    """The machine and its compute device, with the settings that decide its speed."""
    facts = session.environment
    if session.is_remote:
        return ", ".join(filter(None, [session.target, facts.device, facts.power_mode]))
    unit = "GPU of" if one.runner.startswith(("tensorrt", "ort-cuda", "ort-tensorrt")) else "CPU"
    cores = f", {facts.usable_cores} cores" if facts.usable_cores else ""
    return f"{unit} {_machine(session)}{cores}"


def _machine(session: Session) -> str:
    return session.environment.cpu or "unknown machine"


def _runtime(runner: str) -> str:
    """The runtime of a runner, as scores name it."""
    return "tensorrt" if runner.startswith("tensorrt") else runner


def _timed(artifact: Artifact, session: Session, one: Measurement, scores: _Scores) -> Row:
    score, elsewhere = _score_of(artifact, session, one, scores)
    swept = any(session.settings.threads)
    row = _row(artifact, score, runner=one.runner)
    if one.verification is not None and artifact.precision == "fp32" and not artifact.baked:
        # The device's own outputs were compared with those of the fp32 file.
        seen = one.verification
        row = replace(row, cosine=seen.cosine, top1_agreement=seen.top1)
    elif one.precision != artifact.precision or not _is_own(artifact, one):
        row = replace(row, cosine=None, top1_agreement=None)
    return replace(
        row,
        precision=one.precision,
        threads=one.threads if swept else None,
        score_elsewhere=elsewhere,
        p50_ms=one.latency_ms.p50,
        p99_ms=one.latency_ms.p99,
        throughput_ips=one.throughput_ips,
        noisy=one.noise.noisy,
        measured=session.created,
    )


def _untimed(artifact: Artifact, scores: _Scores) -> Row:
    score = scores.get((artifact.sha256, artifact.runtime))
    return _row(artifact, score, runner=artifact.runtime)


def _row(artifact: Artifact, score: Score | None, *, runner: str) -> Row:
    proof = artifact.proof
    compared = score if score is not None and score.cosine is not None else proof
    return Row(
        run=str(artifact.run.path),
        file=artifact.file.name,
        runner=runner,
        precision=artifact.precision,
        exported=artifact.precision,
        sha256=artifact.sha256,
        size_mb=artifact.size_mb,
        score=None if score is None else score.points,
        scored_by=_words(score),
        cosine=compared.cosine if compared else None,
        top1_agreement=compared.top1_agreement if compared else None,
        baked=artifact.baked,
    )


def _words(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.by} in {score.runtime}" + (f" on {score.machine}" if score.machine else "")


def _score_of(
    artifact: Artifact, session: Session, one: Measurement, scores: _Scores
) -> tuple[Score | None, bool]:
    """The score of a timed case, and whether it was computed elsewhere.

    A score from elsewhere is used if the file computes in its own precision and its outputs were
    verified where it was timed.
    """
    own = scores.get((artifact.sha256, _runtime(one.runner)))
    machines = ("", _machine(session))
    if own is not None and not session.is_remote and own.machine in machines:
        return own, False
    any_score = own or scores.get((artifact.sha256, artifact.runtime))
    if one.precision == artifact.precision and _is_own(artifact, one):
        return any_score, any_score is not None
    return None, False


def _is_own(artifact: Artifact, one: Measurement) -> bool:
    """Whether a timed case is known to compute the file's outputs.

    ONNX Runtime on a CPU is the reference for all others.
    """
    verified = one.verification is not None and one.verification.passed
    return verified or (one.runner == "ort-cpu" and artifact.runtime == "ort-cpu")


def _with_front(rows: Sequence[Row]) -> list[Row]:
    """The rows, those on the Pareto front of score against p50 marked as such."""
    fit = [row for row in rows if row.score is not None and row.p50_ms is not None]
    return [
        replace(row, front=row in fit and not any(_beats(other, row) for other in fit))
        for row in rows
    ]


def _beats(one: Row, other: Row) -> bool:
    a, b = (one.score or 0.0, -(one.p50_ms or 0.0)), (other.score or 0.0, -(other.p50_ms or 0.0))
    return a != b and a[0] >= b[0] and a[1] >= b[1]


def _not_faster(group: Group) -> Iterator[str]:
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


def _drops(exports: Exports, scores: Sequence[Score], max_drop: float) -> Iterator[str]:
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
                f"{score.metric} on {score.on.images} images: {score.points:.2f}, fp32 "
                f"{base.points:.2f} (--max-drop {max_drop:g})"
            )
