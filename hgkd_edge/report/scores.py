"""Scores next to their baselines, and what the model got right and wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hgkd_edge.report.pictures import task_pictures
from hgkd_edge.report.view import MOST_ROWS, Bar, Bars, Block, Cell, Matrix, Note, Section, Table
from hgkd_edge.rundir import RunDir
from hgkd_edge.tables import percent

__all__ = ["METRICS", "evaluation_of", "finetuning_of", "scores_section", "trained_on"]

METRICS = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_class": "Mean accuracy of the classes",
    "miou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "ignored_pixels": "Ignored pixels",
    "map": "mAP50-95",
    "map50": "mAP50",
    "knn": "k-NN, top-1",
    "linear_probe": "Linear probe, top-1",
}
_TASKS = {"classify": "Classification", "segment": "Segmentation", "detect": "Detection"}
_OF_A_CLASS = {"classify": "accuracy", "segment": "IoU", "detect": "average precision"}
_MOST_BARS = 30  # of classes: with more, the lowest are shown
_MOST_CLASSES = 24  # of a confusion matrix that is shown whole
_MOST_CONFUSED = 20  # pairs that are listed instead


def finetuning_of(run: RunDir) -> dict[str, Any]:
    """The record of a fine-tuning with scores; empty where there is none."""
    file = run.finetune_result_file
    found = run.read_json(file) if file.is_file() else {}
    return found if "scores" in found else {}


def evaluation_of(run: RunDir) -> dict[str, Any]:
    """The record of `evaluate`; empty where there is none."""
    file = run.path / "evaluation.json"
    return run.read_json(file) if file.is_file() else {}


def scores_section(run: RunDir) -> Section | None:
    """Every score of a run, with intervals and baselines; each once."""
    blocks: list[Block] = []
    finetuned, evaluated = finetuning_of(run), evaluation_of(run)
    training = run.manifest().get("finetune", {}).get("data", {}).get("train", {})
    classes = training.get("classes", ())
    if "distilled" in evaluated:
        blocks += _feature_scores(evaluated)
    if finetuned:
        blocks += _task_scores(finetuned, "the fine-tuned model in PyTorch", classes)
    if "scores" in evaluated and not _is_same(evaluated, finetuned):
        model = f"{evaluated['model']} in {evaluated['runtime']}"
        blocks += _task_scores(evaluated, model, classes)
    blocks += task_pictures(run)
    return Section("Scores", blocks) if blocks else None


def _is_same(evaluated: Mapping[str, Any], finetuned: Mapping[str, Any]) -> bool:
    """Whether `evaluate` repeats the scores of `finetune`, apart from the paths of pictures."""
    keys = ("split", "photos", "baseline", "intervals")
    scores = [
        {name: value for name, value in each.get("scores", {}).items() if name != "pictures"}
        for each in (evaluated, finetuned)
    ]
    return scores[0] == scores[1] and all(evaluated.get(k) == finetuned.get(k) for k in keys)


def trained_on(result: Mapping[str, Any]) -> str:
    """The scored images."""
    photos = result["photos"]
    count = photos[result["split"]] if isinstance(photos, dict) else photos
    return f"{count:,} images of the {result['split']} split"


def _feature_scores(result: Mapping[str, Any]) -> Iterator[Block]:
    intervals = result.get("intervals", {})
    on = f"frozen features, {trained_on(result)}"
    for key in ("knn", "linear_probe"):
        rows = [
            _bar(
                name, result[name][key], intervals.get(name, {}).get(key), main=name == "distilled"
            )
            for name in ("distilled", "untrained")
        ]
        rows.append(
            _bar("majority class", result["majority"], intervals.get("majority"), main=False)
        )
        yield Bars(METRICS[key], rows, _about(on, result))
    yield from _warnings(result)


def _task_scores(result: Mapping[str, Any], model: str, classes: Sequence[str]) -> Iterator[Block]:
    scores, intervals = result["scores"], result.get("intervals", {})
    about = _about(f"{model}, {trained_on(result)}", result)
    single = {name: value for name, value in scores.items() if isinstance(value, float)}
    rows = [
        _bar(METRICS.get(name, name), value, intervals.get(name))
        for name, value in list(single.items())[:MOST_ROWS]
    ]
    if baseline := result.get("baseline"):
        name = f"baseline: {baseline['name']}"
        rows.append(_bar(name, baseline["score"], None, main=False))
    yield Bars(_TASKS.get(result["task"], result["task"]), rows, about)
    yield from _warnings(result)
    if per_class := scores.get("per_class", {}):
        spread = intervals.get("per_class", {})
        rows = [_bar(name, value, spread.get(name)) for name, value in per_class.items()]
        unit = _OF_A_CLASS.get(result["task"], "")
        if len(rows) > _MOST_BARS:
            unit += f"; the {_MOST_BARS} lowest of {len(rows):,} classes"
            rows = sorted(rows, key=lambda bar: bar.share)[:_MOST_BARS]
        yield Bars("By class", rows, unit)
    if confusion := scores.get("confusion"):
        yield _confusion(confusion, classes, pixels=result["task"] == "segment")


def _bar(name: str, share: float, interval: Sequence[float] | None, *, main: bool = True) -> Bar:
    return Bar(name, min(1.0, max(0.0, float(share))), percent(share, interval), interval, main)


def _about(on: str, result: Mapping[str, Any]) -> str:
    method = result.get("interval_method")
    return f"{on}; line: {method}" if method else on


def _warnings(result: Mapping[str, Any]) -> Iterator[Note]:
    if warnings := result.get("warnings"):
        yield Note(*warnings[:MOST_ROWS])


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str], *, pixels: bool) -> Block:
    """The matrix, or its most frequent mistakes where it would not be legible.

    Counts of pixels have too many digits: each is shown as its share of the true pixels.
    """
    classes = [names[i] if len(names) == len(counts) else f"class {i}" for i in range(len(counts))]
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    if len(counts) <= _MOST_CLASSES:
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
    cells = [
        [
            Cell(classes[i]),
            Cell(classes[j]),
            Cell(f"{n:,}", number=True),
            Cell(f"{100 * shares[i][j]:.1f} %", number=True),
        ]
        for n, i, j in wrong
    ]
    columns = ("true class", "predicted", "count", "of the class")
    return Table(columns, cells, title="Most frequent mistakes")
