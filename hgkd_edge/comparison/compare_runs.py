"""Rows by device: every exported file in every runtime that it was timed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hgkd_edge.bench.environment import environment
from hgkd_edge.bench.records import Measurement, Session, load_bench
from hgkd_edge.cells import counted
from hgkd_edge.comparison.artifacts import Artifact, Exports, artifacts_of
from hgkd_edge.comparison.missing_scores import Judged, judge
from hgkd_edge.comparison.rows import Circumstances, Comparison, Group, Row
from hgkd_edge.comparison.scores import Score, keep_scores, most_used, recorded_scores
from hgkd_edge.comparison.verdict import MAX_DROP, drops, not_faster, with_front
from hgkd_edge.errors import RunError
from hgkd_edge.rundir import RunDir

__all__ = ["compare_runs", "sessions_of", "timed_here"]

_Scores = Mapping[tuple[str, str], Score]  # by digest and runtime


def compare_runs(
    runs: Sequence[RunDir], *, score: bool = True, max_drop: float = MAX_DROP
) -> Comparison:
    """Every exported file in every runtime that it was timed in, or that runs on this machine.

    Args:
        runs: Compared side by side.
        score: Score the files that have no recorded score, and keep the scores in the run.
        max_drop: Points that a file may score below fp32 without a warning.

    Raises:
        RunError: A run has nothing exported, or one of its records is damaged, or `max_drop` is no
            number of points.
    """
    if not max_drop >= 0:  # NaN neither
        raise RunError(f"--max-drop must be 0 or more, not {max_drop:g}", hint="points, such as 1")
    placed: list[tuple[Circumstances, Row]] = []
    warnings: list[str] = []
    remarks: list[str] = []
    for run in runs:
        exports = _require(run, artifacts_of(run))
        judged = _judged(run, exports, score=score)
        rows, about = _rows(run, exports, judged.scores)
        placed += rows
        warnings += drops(exports, judged.scores, max_drop)
        remarks += [*exports.remarks, *judged.remarks, *about]
    groups = [
        Group(on, with_front([row for other, row in placed if other == on]))
        for on in sorted(dict.fromkeys(on for on, _ in placed), key=lambda on: not on.device)
    ]
    warnings = [*(line for group in groups for line in not_faster(group)), *warnings]
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
            if why := _not_a_row(run, one, artifact):
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


def _not_a_row(run: RunDir, one: Measurement, artifact: Artifact | None) -> str:
    """Why a measurement is skipped; '' if it is not."""
    if one.runner.startswith("torch"):
        return "PyTorch was timed on the bare backbone, not on an exported file"
    if artifact is None:
        again = f"hgkd-edge bench {run.quoted}"
        return f"its file has changed since, or is gone; measure again: {again}"
    if one.computed_wrong:
        return "it computed wrong outputs"
    return ""


def _device(session: Session, one: Measurement) -> str:
    """The machine and its compute device, with the settings that decide its speed."""
    facts = session.environment
    if session.is_remote:
        return ", ".join(filter(None, [session.target, facts.device, facts.power_mode]))
    unit = "GPU of" if one.runner.startswith(("tensorrt", "ort-cuda", "ort-tensorrt")) else "CPU"
    cores = f", {counted(facts.usable_cores, 'core')}" if facts.usable_cores else ""
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
