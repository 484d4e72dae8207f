"""What to deploy: score against latency with the Pareto front, and all measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exporters.choices import PRECISIONS
from hgkd_edge.bench.compare import (
    FAILED_SINCE,
    failed_models,
    outdated_models,
    with_fp32_baseline,
)
from hgkd_edge.bench.records import Session, load_bench
from hgkd_edge.bench.tables import session_heading, session_notes, session_warnings
from hgkd_edge.cells import milliseconds, rate
from hgkd_edge.comparison.artifacts import artifacts_of
from hgkd_edge.comparison.compare_runs import compare_runs
from hgkd_edge.comparison.rows import Comparison, Group, Row
from hgkd_edge.comparison.view import group_heading, legend_lines, row_label
from hgkd_edge.report.charts import Point, draw_points
from hgkd_edge.report.exports import failed_files
from hgkd_edge.report.scores import METRICS
from hgkd_edge.report.training import is_finite
from hgkd_edge.report.view import (
    MOST_ROWS,
    Block,
    Cell,
    Chart,
    Charts,
    Legend,
    Lines,
    Note,
    Remark,
    Section,
    Table,
    Tile,
    capped,
)
from hgkd_edge.rundir import RunDir

__all__ = ["choice_blocks", "choice_of", "choice_section", "fastest_tile", "speed_section"]

_MOST_POINTS = 60  # of a plot
_MOST_DEVICES = 20  # with a plot and a table each


def choice_of(runs: Sequence[RunDir]) -> Comparison | None:
    """The files of the runs that can be compared, from recorded figures; None if there are none."""
    fit = [run for run in runs if artifacts_of(run).artifacts]
    return compare_runs(fit, score=False) if fit else None


def choice_section(found: Comparison | None) -> Section | None:
    """For each device, score against latency, and the table that it shows."""
    if found is None:
        return None
    return Section("Which file to deploy", list(choice_blocks(found)))


def choice_blocks(found: Comparison) -> Iterator[Block]:
    """A plot and a table for each device, then warnings.

    Points are colored by precision; by run, where there are several.
    """
    for group in found.groups[:_MOST_DEVICES]:
        plotted = [row for row in group.rows if _has_both(row)][:_MOST_POINTS]
        if plotted:
            yield _plot(group, plotted, found)
        yield _choice_table(group, plotted, found)
    if len(found.groups) > _MOST_DEVICES:
        yield Note(f"{_MOST_DEVICES} of {len(found.groups):,} devices and batch sizes are shown")
    yield Remark("; ".join(legend_lines(found)))
    if found.warnings:
        yield Note(*found.warnings[:MOST_ROWS])
    if found.remarks:
        yield Lines("Skipped files", found.remarks[:MOST_ROWS])


def fastest_tile(found: Comparison | None) -> Tile | None:
    """The fastest file on a front; None where nothing was timed and scored."""
    rows = [row for group in found.groups for row in group.rows] if found else []
    front = [row for row in rows if row.front and _has_both(row)]
    if not front:
        return None
    best = min(front, key=lambda row: row.p50_ms or 0.0)
    return Tile(
        "Fastest on the front",
        f"{milliseconds(best.p50_ms or 0)} ms",
        f"{best.precision}, {best.runtime}, p50",
    )


def _has_both(row: Row) -> bool:
    return is_finite(row.score) and is_finite(row.p50_ms) and (row.p50_ms or 0) > 0


def _colors(found: Comparison) -> list[str]:
    """What has a color in the plots: precisions, or runs."""
    if len(found.runs) > 1:
        return found.runs
    rows = [row for group in found.groups for row in group.rows]
    others = sorted({row.precision for row in rows} - {*PRECISIONS})
    return [*PRECISIONS, *others]


def _plot(group: Group, rows: Sequence[Row], found: Comparison) -> Charts:
    names = _colors(found)
    of_row = [row.run if len(found.runs) > 1 else row.precision for row in rows]
    points = [
        Point(row.p50_ms or 0, row.score or 0, str(number), names.index(name), row.front)
        for number, (row, name) in enumerate(zip(rows, of_row, strict=True), start=1)
    ]
    metric = METRICS.get(group.on.metric, "score")
    unit = f"{metric}, %"
    svg = draw_points(points, unit=unit, label=f"{metric} against latency")
    about = (
        "Filled points, joined by the dashed line, are on the Pareto front: no other file is as "
        "good and faster. Numbers are those of the table."
    )
    legend = [Legend(names.index(name), name) for name in dict.fromkeys(of_row)]
    chart = Chart("Score against latency", unit, svg, about, legend)
    return Charts([chart], wide=True)


def _choice_table(group: Group, plotted: Sequence[Row], found: Comparison) -> Table:
    times = ("p50 ms", "p99 ms", "img/s") if group.on.device else ()
    key = ("#",) if plotted else ()
    columns = ("file", *key, "runner", "score", "agree", *times, "MiB", "")
    rows = []
    for row in group.rows:
        number = str(plotted.index(row) + 1) if row in plotted else ""
        score = "-" if row.score is None else f"{row.score:.2f}{'*' if row.score_elsewhere else ''}"
        cosine = "-" if row.cosine is None else f"{row.cosine:.4f}"
        figures = [score, cosine]
        if times:
            p50 = "-" if row.p50_ms is None else milliseconds(row.p50_ms)
            p99 = "-" if row.p99_ms is None else milliseconds(row.p99_ms)
            figures += [p50 + ("~" if row.noisy else ""), p99, rate(row.throughput_ips or 0)]
        rows.append(
            [
                Cell(row_label(row, found), mono=True),
                *(Cell(number, number=True) for _ in key),
                Cell(row.runtime),
                *(Cell(figure, number=True) for figure in [*figures, f"{row.size_mb:.1f}"]),
                Cell("front", "good", badge=True) if row.front else Cell(""),
            ]
        )
    return Table(columns, capped(rows, len(columns)), group_heading(group))


def speed_section(run: RunDir) -> Section | None:
    """Every session of `bench`; None where nothing was measured.

    Raises:
        RunError: `bench.json` is damaged.
    """
    bench = run.own(run.bench_file)
    if not bench.is_file():
        return None
    failed = failed_files(run)
    blocks: list[Block] = []
    for session in load_bench(bench).sessions:
        outdated = outdated_models(session, bench)
        since = {label for label, what in outdated.items() if what == FAILED_SINCE}
        names = {model.path.rsplit("/", 1)[-1] for model in session.models if model.label in since}
        bad = failed_models(session, failed | names)
        blocks.append(_session_table(with_fp32_baseline(session, bad), bad))
        if bad:
            failures = (f"{m}: FAILED verification, do not deploy it" for m in sorted(bad))
            blocks.append(Note(*failures, tone="bad"))
        again = f"measure again: hgkd-edge bench {run.quoted}"
        warnings = [f"{m} {what}; {again}" for m, what in outdated.items()]
        if warnings := [*warnings, *session_warnings(session)]:
            blocks.append(Note(*warnings[:MOST_ROWS]))
        refused = [f"not measured: {r.name}: {r.reason}" for r in session.refusals]
        notes = session_notes(session) if session.measurements else []
        if notes or refused:
            blocks.append(Lines("How it was measured", [*notes, *refused][:MOST_ROWS]))
    return Section("Speed", blocks) if blocks else None


def _session_table(session: Session, bad: frozenset[str]) -> Table:
    columns = (
        "model",
        "runner",
        "precision",
        "batch",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "img/s",
        "ratio",
    )
    rows = []
    for one in session.measurements:
        failed = one.model in bad
        latency = one.latency_ms
        figures = [
            str(one.batch),
            *(milliseconds(time) for time in (latency.p50, latency.p90, latency.p99)),
            rate(one.throughput_ips),
            f"{one.ratio.median:.2f}x" if one.ratio else "-",
        ]
        rows.append(
            [
                Cell(
                    f"{one.model} (FAILED)" if failed else one.model,
                    "bad" if failed else "",
                    mono=True,
                ),
                Cell(one.runner + (f", {one.threads} threads" if one.threads else "")),
                Cell(one.precision),
                *(Cell(figure, number=True) for figure in figures),
            ]
        )
    about = "latency of one inference in ms; ratio: time over that of the fp32 file"
    return Table(columns, capped(rows, len(columns)), session_heading(session), about)
