"""What the terminal shows, in 80 columns; the full record is in bench.json."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hgkd_edge.bench.compare import Comparison, failed_models
from hgkd_edge.bench.records import Measurement, Refusal, Session
from hgkd_edge.cells import Name, counted, milliseconds, name_table, rate

__all__ = [
    "comparison_view",
    "fleet_view",
    "session_heading",
    "session_notes",
    "session_view",
    "session_warnings",
]


def session_view(session: Session) -> RenderableType:
    """The table of a session, then the notes needed to interpret it."""
    bad = failed_models(session)
    wrong = [f"{name}: FAILED verification, do not deploy it" for name in sorted(bad)]
    return Group(
        Text(session_heading(session), style="bold"),
        _latency_table(session.measurements, bad),
        *_lines("red", wrong),
        *_lines("dim", session_notes(session)),
        *_lines("yellow", (f"warning: {line}" for line in session_warnings(session))),
        *_lines("dim", map(_not_measured, session.refusals)),
    )


def session_heading(session: Session) -> str:
    """Target and machine of a session, in one line."""
    return f"{session.target}: {_machine(session)}"


def session_notes(session: Session) -> list[str]:
    """Power, verification, the command and the method of a session's figures."""
    return [*_power(session.measurements), *_method(session)]


def fleet_view(sessions: Sequence[Session], refusals: Sequence[Refusal]) -> RenderableType:
    """Several devices in one table, then each one's mode, warnings and refusals."""
    figures = ("prec", "B", "p50 ms", "p99 ms", "img/s", "W", "mJ/img")
    table = name_table(["device", "model"], *figures)
    lines: list[RenderableType] = [table]
    for session in sessions:
        for one in session.measurements:
            shown = _figures(one)
            table.add_row(Name(session.target), Name(one.model), *(shown[key] for key in figures))
        warnings = session_warnings(session)
        lines += _lines("dim", [session_heading(session)])
        lines += _lines("yellow", (f"warning: {session.target}: {line}" for line in warnings))
        refused = (_not_measured(one, f"{session.target}: ") for one in session.refusals)
        lines += _lines("dim", refused)
    return Group(*lines, *_lines("red", map(_not_measured, refusals)))


def comparison_view(comparison: Comparison) -> RenderableType:
    """Ratios of two files."""
    table = name_table(["target", "case"], "difference", "a p50 ms", "b p50 ms", "b/a")
    for row in comparison.rows:
        table.add_row(
            Name(row.target),
            Name(row.case),
            "beyond noise" if row.beyond_noise else "within noise",
            milliseconds(row.a_p50_ms),
            milliseconds(row.b_p50_ms),
            f"{row.ratio:.2f}x",
        )
    notes = [f"note: {row.case}: {note}" for row in comparison.rows for note in row.differs]
    unmatched = f"cases only in a: {comparison.only_a}; only in b: {comparison.only_b}"
    return Group(
        *_lines("dim", [f"a: {comparison.a}", f"b: {comparison.b}"]),
        table,
        *_lines("yellow", notes),
        *_lines("dim", [unmatched] if comparison.only_a or comparison.only_b else []),
    )


def _lines(style: str, texts: Collection[str] | Iterator[str]) -> list[Text]:
    return [Text(text, style=style) for text in texts]


def _latency_table(measurements: Sequence[Measurement], failed: Collection[str]) -> Table:
    threads = ["thr"] if any(one.threads for one in measurements) else []
    ratio = ["ratio"] if any(one.ratio for one in measurements) else []
    figures = ["prec", "B", *threads, "p50 ms", "p90 ms", "p99 ms", "max ms", "img/s", *ratio]
    table = name_table(["model", "runner"], *figures)
    for one in measurements:
        bad, shown = one.model in failed, _figures(one)
        table.add_row(
            Name(f"{one.model} (FAILED)" if bad else one.model),
            Name(one.runner),
            *(shown[key] for key in figures),
            style="red" if bad else None,
        )
    return table


def _figures(one: Measurement) -> dict[str, str]:
    """What the tables show of a measurement, by column."""
    times, seen = one.latency_ms, one.telemetry
    return {
        "prec": one.precision,
        "B": str(one.batch),
        "thr": str(one.threads or "-"),
        **{f"{key} ms": milliseconds(getattr(times, key)) for key in ("p50", "p90", "p99", "max")},
        "img/s": rate(one.throughput_ips),
        "ratio": f"{one.ratio.median:.2f}x" if one.ratio else "-",
        "W": f"{seen.total_mean_w:.1f}" if seen and seen.total_mean_w else "-",
        "mJ/img": f"{seen.energy_per_image_mj:.1f}" if seen and seen.energy_per_image_mj else "-",
    }


def _machine(session: Session) -> str:
    """A short description of the machine; on a Jetson with its power mode and clocks."""
    found = session.environment
    parts = [found.device or found.cpu or "unknown machine"]
    if found.is_jetson:
        locked = {True: "locked", False: "not locked", None: "unknown"}[found.clocks_locked]
        mode = found.power_mode or "unknown"
        parts += [f"JetPack {found.jetpack or '?'}", f"mode {mode}", f"clocks {locked}"]
    elif found.usable_cores:
        parts.append(counted(found.usable_cores, "core"))
    if found.trtexec:
        parts.append(f"TensorRT {found.trtexec}")
    return ", ".join(parts)


def _power(measurements: Sequence[Measurement]) -> Iterator[str]:
    for one in measurements:
        seen = one.telemetry
        if seen is None or seen.total_mean_w is None:
            continue
        name = f"{one.case}: " if len(measurements) > 1 else ""
        watts = f"{seen.total_mean_w:.1f} W mean, {seen.total_peak_w or 0:.1f} W peak"
        energy = seen.energy_per_image_mj
        yield f"{name}power {watts} ({seen.total_rail})" + (
            f"; {energy:.1f} mJ per image" if energy else ""
        )


def _method(session: Session) -> Iterator[str]:
    """How outputs were verified (failures are among the warnings), what ran, what was timed."""
    measured = session.measurements
    passed = [one.verification for one in measured if one.verification and not one.computed_wrong]
    if passed:
        which = f"{len(passed)} of {len(measured)}: " if len(passed) < len(measured) else ""
        where = " on the device" if session.is_remote else ""
        kind = "real" if all(one.source == "images" for one in passed) else "synthetic"
        images = counted(min(one.images for one in passed), f"{kind} image")
        yield (
            f"{which}outputs verified{where} before measuring: at least {images} "
            "against ONNX Runtime, largest relative error "
            f"{max(one.relative_error or 0.0 for one in passed):.1e}"
        )
    # The measuring command of the first case: its flags are part of the figure.
    if commands := next((one.commands for one in measured if one.commands), None):
        yield "ran: " + " ".join(commands[-1])
    copies = "included" if measured[0].copies == "in" else "not included"
    fed = sorted({source.source for one in measured for source in one.inputs})
    runs = min(one.latency_ms.count for one in measured)
    cold = [one.first_inference_ms for one in measured if one.first_inference_ms]
    yield (
        f"copies {copies}; input: {' and '.join(fed) or 'not recorded'}; at least {runs} "
        "runs per row after warm-up"
        + (f"; first inference {milliseconds(cold[0])} ms" if cold else "")
    )


def session_warnings(session: Session) -> list[str]:
    """Session warnings, then each measurement's own; duplicates are printed once."""
    lines = list(session.warnings)
    for one in session.measurements:
        prefix = f"{one.case}: " if len(session.measurements) > 1 else ""
        lines += [prefix + warning for warning in one.warnings]
    return list(dict.fromkeys(lines))


def _not_measured(refusal: Refusal, target: str = "") -> str:
    return f"not measured: {target}{refusal.name}: {refusal.reason}"
