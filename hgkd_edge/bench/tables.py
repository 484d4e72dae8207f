"""What the terminal shows, in 80 columns; the full record is in bench.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement as Measurement_
from rich.table import Table
from rich.text import Text

from hgkd_edge.bench.compare import Comparison, failed_models
from hgkd_edge.bench.records import Measurement, Refusal, Session
from hgkd_edge.console import printable

__all__ = [
    "Name",
    "comparison_view",
    "fleet_view",
    "milliseconds",
    "name_table",
    "rate",
    "session_heading",
    "session_notes",
    "session_view",
    "session_warnings",
]


def session_view(session: Session, *, failed: Collection[str] = ()) -> RenderableType:
    """The table of a session, then the notes needed to interpret it.

    `failed` are names of model files known to have failed verification.
    """
    bad = failed_models(session, failed)
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
    figures = ("B", "p50 ms", "p99 ms", "img/s", "W", "mJ/img")
    table = name_table(["device", "model"], "prec", *figures)
    lines: list[RenderableType] = [table]
    for session in sessions:
        for one in session.measurements:
            seen = one.telemetry
            table.add_row(
                Name(session.target),
                Name(one.model),
                one.precision,
                str(one.batch),
                milliseconds(one.latency_ms.p50),
                milliseconds(one.latency_ms.p99),
                rate(one.throughput_ips),
                f"{seen.total_mean_w:.1f}" if seen and seen.total_mean_w else "-",
                f"{seen.energy_per_image_mj:.1f}" if seen and seen.energy_per_image_mj else "-",
            )
        lines += _lines("dim", [session_heading(session)])
        warnings = session_warnings(session)
        lines += _lines("yellow", (f"warning: {session.target}: {line}" for line in warnings))
    return Group(*lines, *_lines("red", map(_not_measured, refusals)))


def comparison_view(comparison: Comparison) -> RenderableType:
    """Ratios of two files."""
    table = name_table(["target", "case"], "difference", "a p50 ms", "b p50 ms", "b/a", "p99 b/a")
    for row in comparison.rows:
        table.add_row(
            Name(row.target),
            Name(row.case),
            "beyond noise" if row.beyond_noise else "within noise",
            milliseconds(row.a_p50_ms),
            milliseconds(row.b_p50_ms),
            f"{row.ratio:.2f}x",
            f"{row.p99_ratio:.2f}x",
        )
    notes = [f"note: {row.case}: {note}" for row in comparison.rows for note in row.differs]
    return Group(
        *_lines("dim", [f"a: {comparison.a}", f"b: {comparison.b}"]),
        table,
        *_lines("yellow", notes),
        *_lines("dim", (f"only in a: {case}" for case in comparison.only_a)),
        *_lines("dim", (f"only in b: {case}" for case in comparison.only_b)),
        *_lines("yellow", (f"warning: {line}" for line in comparison.outdated)),
    )


def milliseconds(value: float) -> str:
    """Three significant digits, never in exponents: 0.0123, 4.56, 123, 4567."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def rate(images_per_s: float) -> str:
    """Throughput with about three digits."""
    return f"{images_per_s:.1f}" if images_per_s < 100 else f"{images_per_s:.0f}"


def name_table(names: Sequence[str], text: str, *figures: str) -> Table:
    """A table of columns of names, one of short text, and figures, which are never broken."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, ratio=1 if name != "runner" else None)
    table.add_column(text, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


_LONG_PART = 24  # of a name: longer parts are shortened instead of widening the column


@dataclass(frozen=True)
class Name:
    """A table cell that holds a name: broken after `-`, `_`, `.`, `/` or a space, never elsewhere.

    A part that is longer than its column is shortened in the middle.
    """

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement_:
        longest = max(map(cell_len, self._parts()), default=1)
        return Measurement_(min(longest, _LONG_PART, options.max_width), cell_len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for part in self._parts():
            part = _shortened(part, options.max_width)
            if cell_len(lines[-1] + part.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n").join(Text(printable(line.rstrip())) for line in lines)

    def _parts(self) -> list[str]:
        return re.findall(r"[^-_./ ]*[-_./ ]+|[^-_./ ]+", printable(self.text))


def _shortened(text: str, width: int) -> str:
    """A text of at most `width` cells, with an ellipsis in the middle where it is longer."""
    if cell_len(text.rstrip()) <= width:
        return text
    head, tail = width // 2, (width - 1) // 2
    return set_cell_size(text, head).rstrip() + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - tail :]


def _lines(style: str, texts: Collection[str] | Iterator[str]) -> list[Text]:
    return [Text(text, style=style) for text in texts]


def _latency_table(measurements: Sequence[Measurement], failed: Collection[str]) -> Table:
    several = any(one.ratio for one in measurements)
    threads = any(one.threads for one in measurements)
    figures = ["B", *(["thr"] if threads else [])]
    figures += [*(f"{name} ms" for name in ("p50", "p90", "p99", "max")), "img/s"]
    table = name_table(["model", "runner"], "prec", *figures, *(["ratio"] if several else []))
    for one in measurements:
        bad, times = one.model in failed, one.latency_ms
        table.add_row(
            Name(f"{one.model} (FAILED)" if bad else one.model),
            Name(one.runner),
            one.precision,
            str(one.batch),
            *([str(one.threads or "-")] if threads else []),
            *(milliseconds(time) for time in (times.p50, times.p90, times.p99, times.max)),
            rate(one.throughput_ips),
            *([f"{one.ratio.median:.2f}x" if one.ratio else "-"] if several else []),
            style="red" if bad else None,
        )
    return table


def _machine(session: Session) -> str:
    """A short description of the machine; on a Jetson with its power mode and clocks."""
    facts = session.environment
    parts = [str(facts.get("device") or facts.get("cpu") or "unknown machine")]
    if facts.get("is_jetson"):
        locked = {True: "locked", False: "not locked", None: "unknown"}[facts.get("clocks_locked")]
        parts += [
            f"JetPack {facts.get('jetpack') or '?'}",
            f"mode {facts.get('power_mode') or 'unknown'}",
            f"clocks {locked}",
        ]
    elif facts.get("usable_cores"):
        parts.append(f"{facts['usable_cores']} cores")
    if facts.get("trtexec"):
        parts.append(f"TensorRT {facts['trtexec']}")
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
    measurements = session.measurements
    passed = [one.verification for one in measurements if one.verification]
    passed = [one for one in passed if one.passed]
    if passed:
        which = (
            "" if len(passed) == len(measurements) else f"{len(passed)} of {len(measurements)}: "
        )
        where = " on the device" if session.is_remote else ""
        real = all(one.source == "images" for one in passed)
        yield (
            f"{which}outputs verified{where} before measuring: at least "
            f"{min(one.images for one in passed)} x {'real images' if real else 'synthetic input'} "
            "against ONNX Runtime, largest relative error "
            f"{max(one.relative_error or 0.0 for one in passed):.1e}"
        )
    # The measuring command of the first case: its flags are part of the figure.
    commands = next((one.commands for one in measurements if one.commands), None)
    if commands:
        yield "ran: " + " ".join(commands[-1])
    copies = "inside" if measurements[0].copies == "in" else "outside"
    fed = {source.source for one in measurements for source in one.inputs}
    runs = min(one.latency_ms.count for one in measurements)
    cold = [one.first_inference_ms for one in measurements if one.first_inference_ms]
    yield (
        f"copies {copies} the time; {' and '.join(sorted(fed)) or 'no'} input; at least {runs} "
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


def _not_measured(refusal: Refusal) -> str:
    return f"not measured: {refusal.name}: {refusal.reason}"
