"""Scores next to their baselines, and what the model got right and wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hgkd_edge.cells import counted
from hgkd_edge.report.pictures import task_pictures
from hgkd_edge.report.view import (
    MOST_ROWS,
    Bar,
    Bars,
    Block,
    Cell,
    Matrix,
    Note,
    Section,
    Table,
    capped,
)
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import (
    EvaluationRecord,
    FeatureRecord,
    FinetuneRecord,
    LabelScores,
    ScoreRecord,
    TaskRecord,
)
from hgkd_edge.tables import percent

__all__ = ["METRICS", "finetuning_of", "scores_section", "trained_on"]

METRICS = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_class": "Mean accuracy of the classes",
    "miou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "ignored_pixels": "Ignored pixels",
    "map": "mAP50-95",
    "map50": "mAP50",
    "mean_ap": "Mean average precision",
    "micro_f1": "F1 of all labels",
    "macro_f1": "Mean F1 of the classes",
    "knn": "k-NN, top-1",
    "linear_probe": "Linear probe, top-1",
}
_TASKS = {
    "classify": "Classification",
    "multilabel": "Multi-label classification",
    "segment": "Segmentation",
    "detect": "Detection",
}
_OF_A_CLASS = {
    "classify": "accuracy",
    "multilabel": "average precision",
    "segment": "IoU",
    "detect": "average precision",
}
_MOST_BARS = 30  # of classes: with more, the lowest are shown
_MOST_CLASSES = 24  # of a confusion matrix that is shown whole
_MOST_CONFUSED = 20  # pairs that are listed instead


def finetuning_of(run: RunDir) -> FinetuneRecord | None:
    """The record of a fine-tuning with scores; None where there is none."""
    found = run.finetune_result()
    return found if found is not None and found.single else None


def scores_section(run: RunDir) -> Section | None:
    """Every score of a run, with intervals and baselines; each once."""
    blocks: list[Block] = []
    finetuned, evaluated = finetuning_of(run), run.evaluation()
    training = run.manifest().labeled_data.get("train")
    classes = training.classes if training is not None else ()
    if isinstance(evaluated, FeatureRecord):
        blocks += _feature_scores(evaluated)
    if finetuned:
        blocks += _task_scores(finetuned, "the fine-tuned model in PyTorch", classes)
    if isinstance(evaluated, EvaluationRecord) and not _is_same(evaluated, finetuned):
        model = f"{evaluated.model} in {evaluated.runtime}"
        blocks += _task_scores(evaluated, model, classes)
    blocks += task_pictures(run)
    return Section("Scores", blocks) if blocks else None


def _is_same(evaluated: TaskRecord, finetuned: TaskRecord | None) -> bool:
    """Whether `evaluate` repeats the scores of `finetune`, apart from the paths of pictures."""
    if finetuned is None:
        return False
    one, other = (
        (
            each.scores and each.scores.model_copy(update={"pictures": []}),
            (each.split, each.photos, each.baseline, each.intervals),
        )
        for each in (evaluated, finetuned)
    )
    return one == other


def trained_on(result: ScoreRecord) -> str:
    """The scored images."""
    return f"{counted(result.count, 'image')} of the {result.split} split"


def _feature_scores(result: FeatureRecord) -> Iterator[Block]:
    ours, fresh, intervals = result.distilled, result.untrained, result.intervals
    own, other = intervals.distilled, intervals.untrained
    about = _about(f"frozen features, {trained_on(result)}", result)
    majority = _bar("majority class", result.majority, intervals.majority, main=False)
    rows = [_bar("distilled", ours.knn, own.knn)]
    rows.append(_bar("untrained", fresh.knn, other.knn, main=False))
    yield Bars(METRICS["knn"], [*rows, majority], about)
    rows = [_bar("distilled", ours.linear_probe, own.linear_probe)]
    rows.append(_bar("untrained", fresh.linear_probe, other.linear_probe, main=False))
    yield Bars(METRICS["linear_probe"], [*rows, majority], about)
    yield from _warnings(result)


def _task_scores(result: TaskRecord, model: str, classes: Sequence[str]) -> Iterator[Block]:
    intervals = result.intervals
    about = _about(f"{model}, {trained_on(result)}", result)
    rows = [
        _bar(METRICS.get(name, name), value, intervals.single.get(name))
        for name, value in list(result.single.items())[:MOST_ROWS]
    ]
    if baseline := result.baseline:
        rows.append(_bar(f"baseline: {baseline.name}", baseline.score, None, main=False))
    yield Bars(_TASKS.get(result.task, result.task), rows, about)
    yield from _warnings(result)
    if per_class := result.per_class:
        spread = intervals.per_class
        rows = [_bar(name, value, spread.get(name)) for name, value in per_class.items()]
        unit = _OF_A_CLASS.get(result.task, "")
        if len(rows) > _MOST_BARS:
            unit += f"; the {_MOST_BARS} lowest of {len(rows):,} classes"
            rows = sorted(rows, key=lambda bar: bar.share)[:_MOST_BARS]
        yield Bars("By class", rows, unit)
    if result.scores is not None and result.scores.per_label:
        yield _label_table(result.scores.per_label)
    if result.scores is not None and result.scores.confusion:
        yield _confusion(result.scores.confusion, classes, pixels=result.task == "segment")
    elif result.scores is not None and result.scores.mistakes:
        yield _mistakes(result.scores.mistakes, result.scores.class_counts, classes)


def _label_table(per_label: Mapping[str, LabelScores]) -> Table:
    """All scores of each class, the lowest average precision first."""
    ranked = sorted(per_label.items(), key=lambda item: item[1].average_precision or 0.0)
    rows = [
        [
            Cell(name),
            Cell(f"{one.images:,}", number=True),
            Cell(
                "-" if one.average_precision is None else percent(one.average_precision),
                number=True,
            ),
            *(Cell(percent(share), number=True) for share in (one.precision, one.recall, one.f1)),
        ]
        for name, one in ranked
    ]
    columns = ("class", "images", "average precision", "precision", "recall", "F1")
    about = "precision, recall and F1 of the labels above the threshold"
    return Table(columns, capped(rows, len(columns)), title="Labels", about=about)


def _bar(name: str, share: float, interval: Sequence[float] | None, *, main: bool = True) -> Bar:
    return Bar(name, min(1.0, max(0.0, float(share))), percent(share, interval), interval, main)


def _about(on: str, result: ScoreRecord) -> str:
    method = result.interval_method
    return f"{on}; line: {method}" if method else on


def _warnings(result: ScoreRecord) -> Iterator[Note]:
    if result.warnings:
        yield Note(*result.warnings[:MOST_ROWS])


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str], *, pixels: bool) -> Block:
    """The matrix, or its most frequent mistakes where it would not be legible.

    Counts of pixels have too many digits: each is shown as its share of the true pixels.
    """
    if len(counts) <= _MOST_CLASSES:
        classes = _class_names(names, len(counts))
        shares = [[n / max(1, sum(row)) for n in row] for row in counts]
        rows = [
            [
                (f"{100 * share:.0f}" if pixels else f"{n:,}", round(10 * share))
                for n, share in zip(*both, strict=True)
            ]
            for both in zip(counts, shares, strict=True)
        ]
        return Matrix(classes, rows, "% of the true pixels" if pixels else "images")
    wrong = sorted(
        ((n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j),
        reverse=True,
    )[:_MOST_CONFUSED]
    return _mistakes([(i, j, n) for n, i, j in wrong], [sum(row) for row in counts], names)


def _class_names(names: Sequence[str], count: int) -> Sequence[str]:
    return names if len(names) == count else [f"class {i}" for i in range(count)]


def _mistakes(
    wrong: Sequence[tuple[int, int, int]], totals: Sequence[int], names: Sequence[str]
) -> Table:
    """True class, predicted class and number of each; `totals` are the classes' images."""
    classes = _class_names(names, len(totals))
    cells = [
        [
            Cell(classes[i]),
            Cell(classes[j]),
            Cell(f"{n:,}", number=True),
            Cell(f"{100 * n / max(1, totals[i]):.1f} %", number=True),
        ]
        for i, j, n in wrong[:_MOST_CONFUSED]
        if min(i, j) >= 0 and max(i, j) < len(classes)
    ]
    columns = ("true class", "predicted", "count", "of the class")
    return Table(columns, cells, title="Most frequent mistakes")
