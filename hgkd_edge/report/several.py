"""Runs next to each other: scores, curves, files to deploy, and the settings that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hgkd_edge.manifest_record import NetworkOrigin
from hgkd_edge.report.scores import METRICS, finetuning_of, trained_on
from hgkd_edge.report.speed import choice_blocks, choice_of
from hgkd_edge.report.training import PANELS, panel_chart, read_log
from hgkd_edge.report.view import Bar, Bars, Block, Cell, Charts, Legend, Section, Table, capped
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FeatureRecord
from hgkd_edge.tables import percent

__all__ = ["sections_of_several"]


def sections_of_several(runs: Sequence[RunDir]) -> list[Section]:
    """The sections of a page that compares runs; one without content is skipped."""
    names = _names(runs)
    sections = [
        Section("Runs", [_summary(runs, names)]),
        Section("Scores", list(_scores(runs, names))),
        Section("Distillation", _curves(runs, names, lambda run: run.log_file)),
        Section("Fine-tuning", _curves(runs, names, lambda run: run.finetune_log_file)),
        Section("Which file to deploy", list(_choice(runs))),
        Section("Different settings", list(_differences(runs, names))),
    ]
    return [section for section in sections if section.blocks]


def _names(runs: Sequence[RunDir]) -> list[str]:
    """The folders' names; their paths where two have the same."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _summary(runs: Sequence[RunDir], names: Sequence[str]) -> Table:
    columns = ("run", "teacher", "license", "student", "cosine", "k-NN", "task score")
    rows = []
    for run, name in zip(runs, names, strict=True):
        manifest = run.manifest()
        teacher, student = manifest.teacher or NetworkOrigin(), manifest.student or NetworkOrigin()
        held_out = manifest.held_out
        rows.append(
            [
                Cell(name),
                Cell(teacher.name or "-"),
                Cell(teacher.license or "-"),
                Cell(student.name or "-"),
                Cell(f"{held_out.student:.3f}" if held_out is not None else "-", number=True),
                Cell(_knn(run), number=True),
                Cell(_task_score(run), number=True),
            ]
        )
    return Table(columns, rows, about="cosine: to the teacher, on held-out images")


def _knn(run: RunDir) -> str:
    evaluated = run.evaluation()
    return percent(evaluated.distilled.knn) if isinstance(evaluated, FeatureRecord) else "-"


def _task_score(run: RunDir) -> str:
    found = finetuning_of(run)
    if found is None or not found.metric:
        return "-"
    return f"{METRICS.get(found.metric, found.metric)} {percent(found.single[found.metric])}"


def _scores(runs: Sequence[RunDir], names: Sequence[str]) -> Iterator[Block]:
    """Bars of each score that two or more runs have, on the same number of images."""
    found: dict[tuple[str, str], list[Bar]] = {}
    for run, name in zip(runs, names, strict=True):
        for metric, on, share, interval in _shares(run):
            bar = Bar(name, min(1.0, max(0.0, share)), percent(share, interval), interval)
            found.setdefault((metric, on), []).append(bar)
    for (metric, on), bars in found.items():
        if len(bars) > 1:
            yield Bars(METRICS.get(metric, metric), bars, on)


def _shares(run: RunDir) -> Iterator[tuple[str, str, float, Sequence[float] | None]]:
    """Metric, scored images, score and its interval."""
    evaluated, finetuned = run.evaluation(), finetuning_of(run)
    if isinstance(evaluated, FeatureRecord):
        on, ours, ranges = trained_on(evaluated), evaluated.distilled, evaluated.intervals.distilled
        yield "knn", f"frozen features, {on}", ours.knn, ranges.knn
        yield "linear_probe", f"frozen features, {on}", ours.linear_probe, ranges.linear_probe
    if finetuned:
        on = f"fine-tuned, {trained_on(finetuned)}"
        for key, share in finetuned.single.items():
            yield key, on, share, finetuned.intervals.single.get(key)


def _curves(
    runs: Sequence[RunDir], names: Sequence[str], file: Callable[[RunDir], Any]
) -> list[Block]:
    """The curves of all runs in one chart for each figure."""
    logs = [read_log(run, file(run)) for run in runs]
    charts = [chart for panel in PANELS if (chart := panel_chart(panel, logs)) is not None]
    legend = [Legend(number, name) for number, name in enumerate(names) if logs[number]]
    return [Charts(charts, legend)] if charts else []


def _choice(runs: Sequence[RunDir]) -> Iterator[Block]:
    if (found := choice_of(runs)) is not None:
        yield from choice_blocks(found)


def _differences(runs: Sequence[RunDir], names: Sequence[str]) -> Iterator[Block]:
    """The recipe's keys whose values differ."""
    settings = [dict(_flat(run.recipe().model_dump(mode="json"))) for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = []
    for key in keys:
        values = [str(each.get(key, "-")) for each in settings]
        if key != "name" and len(set(values)) > 1:
            rows.append([Cell(key, mono=True), *(Cell(value) for value in values)])
    if rows:
        yield Table(("key", *names), capped(rows, 1 + len(names)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
