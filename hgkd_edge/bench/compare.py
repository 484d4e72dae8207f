"""Measurements compared, within or beyond noise: with others, and with today's model files."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from exporters.atomic_files import aside_of, was_set_aside
from exporters.errors import ExportError
from exporters.network_files import network_digest
from hgkd_edge.bench.measurement import with_ratios
from hgkd_edge.bench.records import BenchFile, Measurement, Record, Session, load_bench
from hgkd_edge.data.input_spec import BAKED
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
# What decides the speed of a machine.
_CONDITIONS = ("cpu", "device", "usable_cores", "governor", "power_mode", "clocks_locked")


class Row(Record):
    """One case in both files. `ratio` = time in b / time in a; under 1, b is faster.

    `beyond_noise` is True when the 95 % intervals of the two means do not meet. Conditions differ
    between runs; cases of one interleaved run compare better.
    """

    target: str
    case: str
    a_p50_ms: float
    b_p50_ms: float
    ratio: float
    beyond_noise: bool
    differs: list[str]


class Comparison(Record):
    """All common cases, and the number of cases in only one file."""

    a: str
    b: str
    rows: list[Row]
    only_a: int
    only_b: int


_Key = tuple[str, str, str, str]  # what two cases must share to be compared
_Found = tuple[Session, Measurement]


def compare_files(a: Path, b: Path) -> Comparison:
    """Match the cases of two files by target, name, precision and copies.

    A case is named by model, runner, batch and threads.

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
        rows=[_row(first[key], second[key]) for key in common],
        only_a=len(first) - len(common),
        only_b=len(second) - len(common),
    )


def _first(cases: dict[_Key, _Found]) -> str:
    """A description of a file's first case, and the number of others."""
    if not cases:
        return "none"
    return " ".join(next(iter(cases))) + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")


def _cases(file: BenchFile) -> dict[_Key, _Found]:
    return {
        (session.target, one.case, one.precision, f"copies {one.copies}"): (session, one)
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


def _conditions(session: Session, one: Measurement) -> dict[str, object]:
    return {
        f"{one.runner} version": one.runner_version,
        **{name: getattr(session.environment, name) for name in _CONDITIONS},
        "input": ", ".join(f"{i.source} {'x'.join(map(str, i.shape))}" for i in one.inputs),
        **{name: one.details.get(name) for name in ("inference_precision", "settings")},
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
