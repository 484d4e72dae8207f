"""Compare two bench.json files: common cases and their ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hgkd_edge.bench.baseline import outdated_models
from hgkd_edge.bench.records import BenchFile, Measurement, Session, load_bench
from hgkd_edge.errors import RunError

__all__ = ["Comparison", "Row", "compare_files"]


@dataclass(frozen=True)
class Row:
    """One case in both files. `ratio` = time in b / time in a; under 1, b is faster.

    `beyond_noise` is True when the 95 % intervals of the two means do not meet. Conditions differ
    between runs; cases of one interleaved run compare better.
    """

    target: str
    case: str
    a_p50_ms: float
    b_p50_ms: float
    ratio: float
    p99_ratio: float
    beyond_noise: bool
    differs: list[str]


@dataclass(frozen=True)
class Comparison:
    """All common cases, the names of cases in only one file, and the outdated files."""

    a: str
    b: str
    rows: list[Row]
    only_a: list[str]
    only_b: list[str]
    outdated: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_files(a: Path, b: Path) -> Comparison:
    """Match the cases of two files by target, model, runner, precision, batch, threads, copies.

    Raises:
        RunError: A file cannot be read, or they have no case in common.
    """
    first, second = _cases(load_bench(a)), _cases(load_bench(b))
    common = [key for key in first if key in second]
    if not common:
        raise RunError(
            f"{a} and {b} have no case in common: {_first(first)}; {_first(second)}",
            hint="compare files of the same target, model names, runner, precision, batch, threads "
            "and copies",
        )
    return Comparison(
        a=str(a),
        b=str(b),
        rows=[_row(key[0], first[key], second[key]) for key in common],
        outdated=[*_outdated("a", a), *_outdated("b", b)],
        only_a=[_words(key) for key in first if key not in second],
        only_b=[_words(key) for key in second if key not in first],
    )


def _outdated(which: str, path: Path) -> list[str]:
    """One line per measured model whose file has changed or failed verification since."""
    return [
        f"{which}: {label} {what}; measure again: hgkd-edge bench"
        for session in load_bench(path).sessions
        for label, what in outdated_models(session, path).items()
    ]


def _first(cases: dict[_Key, _Found]) -> str:
    """A description of a file's first case, and the number of others."""
    if not cases:
        return "none"
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return _words(next(iter(cases))) + more


def _words(key: _Key) -> str:
    target, model, runner, precision, batch, threads, copies = key
    parts = [target, model, runner, precision, f"b{batch}", f"t{threads}" if threads else ""]
    return " ".join(part for part in [*parts, copies] if part)


_Key = tuple[str, str, str, str, int, int | None, str]
_Found = tuple[Session, Measurement]


def _cases(file: BenchFile) -> dict[_Key, _Found]:
    return {
        (
            session.target,
            one.model,
            one.runner,
            one.precision,
            one.batch,
            one.threads,
            f"copies {one.copies}",
        ): (session, one)
        for session in file.sessions
        for one in session.measurements
    }


def _row(target: str, a: _Found, b: _Found) -> Row:
    one, two = a[1].latency_ms, b[1].latency_ms
    apart = one.mean_ci95[1] < two.mean_ci95[0] or two.mean_ci95[1] < one.mean_ci95[0]
    return Row(
        target=target,
        case=a[1].case,
        a_p50_ms=one.p50,
        b_p50_ms=two.p50,
        ratio=two.p50 / one.p50,
        p99_ratio=two.p99 / one.p99,
        beyond_noise=apart,
        differs=_differences(a, b),
    )


def _differences(a: _Found, b: _Found) -> list[str]:
    """Other differences between the two runs, which may explain the ratio."""
    notes = []
    pairs: Sequence[tuple[str, Any, Any]] = [
        (f"{a[1].runner} version", a[1].runner_version, b[1].runner_version),
        ("machine", _machine(a[0]), _machine(b[0])),
        *(
            (name, a[0].environment.get(key), b[0].environment.get(key))
            for name, key in (
                ("cores", "usable_cores"),
                ("governor", "governor"),
                ("power mode", "power_mode"),
                ("clocks locked", "clocks_locked"),
            )
        ),
        ("input", _fed(a[1]), _fed(b[1])),
        *(
            (key.replace("_", " "), a[1].details.get(key), b[1].details.get(key))
            for key in ("inference_precision", "settings")
        ),
    ]
    for name, before, after in pairs:
        if before != after:
            notes.append(f"{name}: {before} -> {after}")
    shas = [
        next((m.sha256 for m in session.models if m.label == one.model), None)
        for session, one in (a, b)
    ]
    if shas[0] != shas[1]:
        notes.append("model file changed")
    for which, (_session, one) in (("a", a), ("b", b)):
        if one.noise.noisy:
            notes.append(f"{which} was noisy")
        if one.verification is not None and not one.verification.passed:
            notes.append(f"{which} computed wrong outputs")
    return notes


def _fed(one: Measurement) -> str:
    """Sources and shapes of the inputs."""
    return ", ".join(f"{i.source} {'x'.join(map(str, i.shape))}" for i in one.inputs)


def _machine(session: Session) -> Any:
    return session.environment.get("device") or session.environment.get("cpu")
