"""Terminal tables. Tables fit 80 columns; the full record is in bench.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement as Measurement_
from rich.table import Table
from rich.text import Text

from hgkd_edge.bench.baseline import failed_models
from hgkd_edge.bench.compare import Comparison
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

    Args:
        session: As measured.
        failed: Names of model files known to have failed verification.
    """
    bad = failed_models(session, failed)
    return Group(
        Text(session_heading(session), style="bold"),
        _latency_table(session.measurements, bad),
        *(_failure_line(name) for name in sorted(bad)),
        *session_notes(session),
        *(Text(f"warning: {line}", style="yellow") for line in session_warnings(session)),
        *(Text(f"not measured: {r.name}: {r.reason}", style="dim") for r in session.refusals),
    )


def session_notes(session: Session) -> list[Text]:
    """Power, verification, the command and the method of a session's figures."""
    measurements = session.measurements
    return [
        *_telemetry_lines(measurements),
        *_verification_lines(session),
        *_command_lines(measurements),
        Text(_method_line(measurements), style="dim"),
    ]


def milliseconds(value: float) -> str:
    """Three significant digits, never in exponents: 0.0123, 4.56, 123, 4567."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def rate(images_per_s: float) -> str:
    """Throughput with about three digits."""
    return f"{images_per_s:.1f}" if images_per_s < 100 else f"{images_per_s:.0f}"


def session_heading(session: Session) -> str:
    """Target and machine of a session, in one line."""
    return f"{session.target}: {_board_line(session)}"


def _board_line(session: Session) -> str:
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


def _failure_line(model: str) -> Text:
    return Text(f"{model}: FAILED verification, do not deploy it", style="red")


def _latency_table(measurements: Sequence[Measurement], failed: Collection[str]) -> Table:
    several = any(one.ratio for one in measurements)
    threads = any(one.threads for one in measurements)
    figures = ["B", *(["thr"] if threads else [])]
    figures += [*(f"{name} ms" for name in ("p50", "p90", "p99", "max")), "img/s"]
    table = name_table(["model", "runner"], "prec", *figures, *(["ratio"] if several else []))
    for one in measurements:
        bad = one.model in failed
        table.add_row(
            Name(f"{one.model} (FAILED)" if bad else one.model),
            Name(one.runner),
            *_row(one, threads=threads, several=several),
            style="red" if bad else None,
        )
    return table


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


def _row(one: Measurement, *, threads: bool, several: bool) -> list[str]:
    latency = one.latency_ms
    return [
        one.precision,
        str(one.batch),
        *([str(one.threads or "-")] if threads else []),
        *(milliseconds(time) for time in (latency.p50, latency.p90, latency.p99, latency.max)),
        rate(one.throughput_ips),
        *([f"{one.ratio.median:.2f}x" if one.ratio else "-"] if several else []),
    ]


def _method_line(measurements: Sequence[Measurement]) -> str:
    copies = "inside" if measurements[0].copies == "in" else "outside"
    fed = {source.source for one in measurements for source in one.inputs}
    inputs = " and ".join(sorted(fed)) or "no"
    runs = min(one.latency_ms.count for one in measurements)
    cold = [one.first_inference_ms for one in measurements if one.first_inference_ms]
    first = f"; first inference {milliseconds(cold[0])} ms" if cold else ""
    return (
        f"copies {copies} the time; {inputs} input; at least {runs} runs per row after "
        f"warm-up{first}"
    )


def _command_lines(measurements: Sequence[Measurement]) -> list[Text]:
    """The measuring command as it ran, of the first case: its flags are part of the figure."""
    for one in measurements:
        if one.commands:
            return [Text("ran: " + " ".join(one.commands[-1]), style="dim")]
    return []


def _telemetry_lines(measurements: Sequence[Measurement]) -> list[Text]:
    lines = []
    for one in measurements:
        seen = one.telemetry
        if seen is None or seen.total_mean_w is None:
            continue
        energy = seen.energy_per_image_mj
        name = f"{one.case}: " if len(measurements) > 1 else ""
        lines.append(
            Text(
                f"{name}power {seen.total_mean_w:.1f} W mean, {seen.total_peak_w or 0:.1f} W peak "
                f"({seen.total_rail})" + (f"; {energy:.1f} mJ per image" if energy else "")
            )
        )
    return lines


def _verification_lines(session: Session) -> list[Text]:
    """One line stating that outputs were verified; failures are among the warnings."""
    measurements = session.measurements
    where = " on the device" if "is_jetson" in session.environment else ""
    seen = [one.verification for one in measurements if one.verification]
    passed = [one for one in seen if one.passed]
    if not passed:
        return []
    error = max(one.relative_error or 0.0 for one in passed)
    source = "real images" if all(one.source == "images" for one in passed) else "synthetic input"
    which = "" if len(passed) == len(measurements) else f"{len(passed)} of {len(measurements)}: "
    return [
        Text(
            f"{which}outputs verified{where} before measuring: at least "
            f"{min(one.images for one in passed)} x {source} against ONNX Runtime, "
            f"largest relative error {error:.1e}",
            style="dim",
        )
    ]


def session_warnings(session: Session) -> list[str]:
    """Session warnings, then each measurement's own; duplicates are printed once."""
    lines = list(session.warnings)
    for one in session.measurements:
        prefix = f"{one.case}: " if len(session.measurements) > 1 else ""
        lines += [prefix + warning for warning in one.warnings]
    return list(dict.fromkeys(lines))


def fleet_view(sessions: Sequence[Session], refusals: Sequence[Refusal]) -> RenderableType:
    """Several devices in one table, then each one's mode, warnings and refusals."""
    figures = ("B", "p50 ms", "p99 ms", "img/s", "W", "mJ/img")
    table = name_table(["device", "model"], "prec", *figures)
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
    lines: list[RenderableType] = [table]
    for session in sessions:
        lines.append(Text(f"{session.target}: {_board_line(session)}", style="dim"))
        lines += [
            Text(f"warning: {session.target}: {w}", style="yellow")
            for w in session_warnings(session)
        ]
    lines += [Text(f"not measured: {r.name}: {r.reason}", style="red") for r in refusals]
    return Group(*lines)


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
    lines: list[RenderableType] = [
        Text(f"a: {comparison.a}", style="dim"),
        Text(f"b: {comparison.b}", style="dim"),
        table,
    ]
    for row in comparison.rows:
        lines += [Text(f"note: {row.case}: {note}", style="yellow") for note in row.differs]
    for name, cases in (("a", comparison.only_a), ("b", comparison.only_b)):
        lines += [Text(f"only in {name}: {case}", style="dim") for case in cases]
    lines += [Text(f"warning: {line}", style="yellow") for line in comparison.outdated]
    return Group(*lines)
