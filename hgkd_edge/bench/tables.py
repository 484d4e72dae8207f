"""What the terminal shows. Tables fit 80 columns; the full record is in bench.json."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hgkd_edge.bench.records import Measurement, Session

__all__ = ["milliseconds", "session_view"]


def session_view(session: Session) -> RenderableType:
    """The table of a session, then what it needs to be read rightly."""
    return Group(
        _heading(session),
        _latency_table(session.measurements),
        *_telemetry_lines(session.measurements),
        Text(_method_line(session.measurements), style="dim"),
        *(Text(f"warning: {line}", style="yellow") for line in _warnings(session)),
        *(Text(f"not measured: {r.name}: {r.reason}", style="dim") for r in session.refusals),
    )


def milliseconds(value: float) -> str:
    """Three significant digits, never in exponents: 0.0123, 4.56, 123, 4567."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _heading(session: Session) -> Text:
    facts = session.environment
    where = facts.get("device") or facts.get("cpu") or "unknown machine"
    cores = f", {facts['usable_cores']} cores" if facts.get("usable_cores") else ""
    return Text(f"{session.target}: {where}{cores}", style="bold")


def _latency_table(measurements: Sequence[Measurement]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    several = any(one.ratio for one in measurements)
    threads = any(one.threads for one in measurements)
    table.add_column("model", overflow="fold", ratio=1)
    table.add_column("runner", overflow="fold")
    table.add_column("prec")
    table.add_column("B", justify="right")
    if threads:
        table.add_column("thr", justify="right")
    for name in ("p50", "p90", "p99", "max"):
        table.add_column(f"{name} ms", justify="right")
    table.add_column("img/s", justify="right")
    if several:
        table.add_column("ratio", justify="right")
    for one in measurements:
        table.add_row(*_row(one, threads=threads, several=several))
    return table


def _row(one: Measurement, *, threads: bool, several: bool) -> list[str]:
    latency = one.latency_ms
    return [
        escape(one.model),
        one.runner,
        one.precision,
        str(one.batch),
        *([str(one.threads or "-")] if threads else []),
        *(milliseconds(time) for time in (latency.p50, latency.p90, latency.p99, latency.max)),
        f"{one.throughput_ips:.1f}" if one.throughput_ips < 100 else f"{one.throughput_ips:.0f}",
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


def _telemetry_lines(measurements: Sequence[Measurement]) -> list[Text]:
    lines = []
    for one in measurements:
        seen = one.telemetry
        if seen is None or seen.total_mean_w is None:
            continue
        energy = seen.energy_per_image_mj
        lines.append(
            Text(
                f"power {seen.total_mean_w:.1f} W mean, {seen.total_peak_w or 0:.1f} W peak "
                f"({seen.total_rail})" + (f"; {energy:.1f} mJ per image" if energy else "")
            )
        )
    return lines


def _warnings(session: Session) -> list[str]:
    """Session warnings, then each measurement's own; said once when they are the same."""
    lines = list(session.warnings)
    for one in session.measurements:
        prefix = f"{one.case}: " if len(session.measurements) > 1 else ""
        lines += [prefix + warning for warning in one.warnings]
    return list(dict.fromkeys(lines))
