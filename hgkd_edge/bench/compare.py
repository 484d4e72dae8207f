"""Recorded measurements compared: with each other, and with the model files of today."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from exporters.errors import ExportError
from exporters.files import aside_of, was_set_aside
from exporters.network_files import network_digest
from hgkd_edge.bench.models import BAKED
from hgkd_edge.bench.records import BenchFile, Measurement, Session, load_bench
from hgkd_edge.bench.session import with_ratios
from hgkd_edge.errors import RunError

__all__ = [
    "FAILED_SINCE",
    "Comparison",
    "Row",
    "compare_files",
    "failed_models",
    "outdated_models",
    "with_fp32_baseline",
]

FAILED_SINCE = "failed verification since it was measured"
_CHANGED_SINCE = "has changed since it was measured"


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


class _Key(NamedTuple):
    """What two cases must share to be compared."""

    target: str
    model: str
    runner: str
    precision: str
    batch: int
    threads: int | None
    copies: str

    def __str__(self) -> str:
        threads = [f"t{self.threads}"] if self.threads else []
        return " ".join([*self[:4], f"b{self.batch}", *threads, f"copies {self.copies}"])


_Found = tuple[Session, Measurement]


def compare_files(a: Path, b: Path) -> Comparison:
    """Match the cases of two files by target, model, runner, precision, batch, threads, copies.

    Raises:
        RunError: A file cannot be read, or they have no case in common.
    """
    files = load_bench(a), load_bench(b)
    first, second = map(_cases, files)
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
        rows=[_row(first[key], second[key]) for key in common],
        outdated=[
            f"{name}: {label} {what}; measure again: hgkd-edge bench"
            for name, path, file in zip("ab", (a, b), files, strict=True)
            for session in file.sessions
            for label, what in outdated_models(session, path).items()
        ],
        only_a=[str(key) for key in first if key not in second],
        only_b=[str(key) for key in second if key not in first],
    )


def _first(cases: dict[_Key, _Found]) -> str:
    """A description of a file's first case, and the number of others."""
    if not cases:
        return "none"
    return str(next(iter(cases))) + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")


def _cases(file: BenchFile) -> dict[_Key, _Found]:
    return {
        _Key(session.target, *(getattr(one, name) for name in _Key._fields[1:])): (session, one)
        for session in file.sessions
        for one in session.measurements
    }


def _row(a: _Found, b: _Found) -> Row:
    one, two = a[1].latency_ms, b[1].latency_ms
    return Row(
        target=a[0].target,
        case=a[1].case,
        a_p50_ms=one.p50,
        b_p50_ms=two.p50,
        ratio=two.p50 / one.p50,
        p99_ratio=two.p99 / one.p99,
        beyond_noise=one.mean_ci95[1] < two.mean_ci95[0] or two.mean_ci95[1] < one.mean_ci95[0],
        differs=list(_differences(a, b)),
    )


def _differences(a: _Found, b: _Found) -> Iterator[str]:
    """Other differences between the two runs, which may explain the ratio."""
    before, after = _conditions(*a), _conditions(*b)
    for name in before:
        if before[name] != after[name]:
            changed = f"{before[name]} -> {after[name]}"
            yield "model file changed" if name == "sha256" else f"{name}: {changed}"
    for which, one in (("a", a[1]), ("b", b[1])):
        if one.noise.noisy:
            yield f"{which} was noisy"
        if one.computed_wrong:
            yield f"{which} computed wrong outputs"


def _conditions(session: Session, one: Measurement) -> dict[str, Any]:
    facts, details = session.environment, one.details
    return {
        f"{one.runner} version": one.runner_version,
        "machine": facts.get("device") or facts.get("cpu"),
        "cores": facts.get("usable_cores"),
        "governor": facts.get("governor"),
        "power mode": facts.get("power_mode"),
        "clocks locked": facts.get("clocks_locked"),
        "input": ", ".join(f"{i.source} {'x'.join(map(str, i.shape))}" for i in one.inputs),
        "inference precision": details.get("inference_precision"),
        "settings": details.get("settings"),
        "sha256": next((m.sha256 for m in session.models if m.label == one.model), None),
    }


def failed_models(session: Session, known: Collection[str] = ()) -> frozenset[str]:
    """Labels of models that failed verification: after export, on the device, or by a file name
    that is known to have failed, such as `demo.int8-cpu.onnx`."""
    here = {m.label for m in session.models if was_set_aside(m.path) or Path(m.path).name in known}
    return frozenset(here | {one.model for one in session.measurements if one.computed_wrong})


def outdated_models(session: Session, bench: Path) -> dict[str, str]:
    """Models whose file differs from the measured one: label -> what changed.

    Models are in `export/` next to the bench.json, or where they were measured; one that is in
    neither is not listed.
    """
    found = {}
    for model in session.models:
        if was_set_aside(model.path):  # it had failed already
            continue
        for file in (bench.parent / "export" / Path(model.path).name, Path(model.path)):
            if file.is_file() or aside_of(file).is_file():
                if what := _what_happened(file, model.sha256):
                    found[model.label] = what
                break
    return found


def _what_happened(file: Path, sha256: str) -> str:
    if not file.is_file():
        return FAILED_SINCE
    try:
        return "" if network_digest(file) == sha256 else _CHANGED_SINCE
    except (ExportError, OSError):  # a file of it is missing or no longer a network
        return _CHANGED_SINCE


def with_fp32_baseline(session: Session, failed: Collection[str] = ()) -> Session:
    """The session with ratios to its plain fp32 file, if there is one that did not fail."""
    unfit = {*failed, *(model.label for model in session.models if BAKED in model.metadata)}
    for base in session.measurements:
        if base.precision == "fp32" and base.model not in unfit:
            compared = with_ratios(session.measurements, base)
            return session.model_copy(update={"measurements": compared})
    return session
