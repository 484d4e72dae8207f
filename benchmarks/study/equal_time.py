"""Students of one teacher trained for equal time of their updates, in every score.

    python -m benchmarks.study.equal_time run --data imagenette-160 --teacher vit.safetensors \
        --minutes 5 --seeds 0 1 2 --out study
    python -m benchmarks.study.equal_time report --out study [--plot study.png]

The cost of an update is measured first, for each ratio: on a CPU in CPU time of one thread, which
needs an otherwise idle machine; on a GPU in seconds of a training. Every arm then gets the epochs
that fit into the minutes. The teacher is not counted: arms with more views take longer, and pixels
need no teacher. With one job, each distillation starts with an empty cache, so that its
`seconds_distilled` include the teacher (`teacher_time.py` compares it with an update). `--minutes`
takes several values: each is a separate training with its own schedule, and together they form the
curve.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from benchmarks.study.arms import (
    CLASS_TOKEN,
    EQUAL_TIME,
    ON_REQUEST,
    SCRATCH,
    SPARK,
    TEACHERS,
    Arm,
)
from benchmarks.study.cell import score_cell, score_teacher
from benchmarks.study.protocols import PROTOCOLS, fresh, training_photos
from benchmarks.study.report import read_cells, report
from hgkd_edge.bench.environment import environment
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.distill import first_updates
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.setup import make_model, make_teacher
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Draws
from hgkd_edge.engine.setup import resolve_precision
from hgkd_edge.files import write_json
from hgkd_edge.recipe import Recipe, load_recipe
from hgkd_edge.rundir import RunDir

HERE = Path(__file__).parent
NO_STUDENT = {*TEACHERS, CLASS_TOKEN}


def staged(ratio: float, share_of_time: float, masked: float, dense: float) -> dict[float, float]:
    """`mask.ratio` whose first stage takes a given share of the *time*.

    Args:
        ratio: Mask ratio of the first stage; the second sees whole images.
        share_of_time: Share of the first stage.
        masked: Seconds of an update of the first stage.
        dense: Seconds of an update of the second.
    """
    if share_of_time in (0, 1):
        return {0.0: ratio}
    first, second = share_of_time / masked, (1 - share_of_time) / dense
    return {0.0: ratio, round(first / (first + second), 4): 0.0}


def seconds_per_update(recipe: Recipe, *, rounds: int = 6) -> float:
    """CPU seconds of the fastest of a few updates of the student, with given targets."""
    parts = build(recipe, download=False)
    teacher = make_teacher(recipe, parts)
    model = make_model(recipe, parts, teacher).train()
    count = recipe.train.batch_size
    images = torch.randint(0, 256, (count, 3, *recipe.data.size), dtype=torch.uint8)
    targets = torch.randn(count, *teacher.center.shape)
    task = Distilling(model, teacher, parts, recipe)
    task._shared_targets = lambda view: targets  # type: ignore[method-assign]
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, fused=True)
    average = ModelEmaV3(model, decay=0.999)
    half = resolve_precision(recipe.train.precision) == "bf16"
    taken = []
    for step in range(rounds):
        draws = Draws(torch.Generator().manual_seed(step), 0, 1, torch.device("cpu"))
        begin = time.process_time()
        for inputs in task.inputs(images, torch.zeros(count), draws):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(*inputs)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
        taken.append((time.process_time() - begin) / task.updates_per_batch)
    return min(taken[1:])


def seconds_in_training(recipe: Recipe, *, updates: int = 60) -> float:
    """Seconds of an update in a training, which on a GPU replays recorded passes."""
    with tempfile.TemporaryDirectory() as folder:
        found = first_updates(recipe, RunDir.create(recipe, Path(folder) / "run"), updates)
    assert found is not None, "one process"
    return recipe.train.batch_size / found.images_per_s / recipe.mask.per_image


class Costs:
    """Seconds of an update by kind and ratio, measured once and stored in a file."""

    def __init__(self, file: Path, base: Recipe) -> None:
        self.file, self.base = file, base
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    def of(self, arm: Arm, ratio: float) -> float:
        kind, changes = ("pixels", SPARK) if arm.changes is SPARK else ("tokens", [])
        name = f"{kind} {ratio:g}"
        if name not in self.seconds:
            changed = changed_recipe(self.base, [*changes, f"mask.ratio={ratio}"])
            measured = seconds_in_training if torch.cuda.is_available() else seconds_per_update
            self.seconds[name] = measured(changed)
            write_json(self.file, self.seconds)
        return self.seconds[name]


def changed_recipe(base: Recipe, changes: list[str]) -> Recipe:
    """A recipe with changes in the form of `--set`."""
    return load_recipe(HERE / f"{base.name}.yaml", [*located(base), *changes])


def located(base: Recipe) -> list[str]:
    """The locations of the images, the teacher, and the student's initial weights, as changes."""
    changes = [f"data.path={base.data.path}", f"teacher.path={base.teacher.path}"]
    return changes + ([f"student.path={base.student.path}"] if base.student.path else [])


def recipe_of(
    name: str, base: Recipe, seed: int, minutes: float, photos: int, costs: Costs
) -> Recipe:
    """The arm's recipe, with the epochs that fit into the minutes."""
    arm = EQUAL_TIME[name]
    masked, dense = costs.of(arm, arm.ratio), costs.of(arm, 0.0) if arm.share < 1 else 0.0
    stages = staged(arm.ratio, arm.share, masked, dense)
    first = [*stages, 1.0][1] if arm.share else 0.0
    mean = first * masked + (1 - first) * dense
    if arm.same_updates_as:
        mean = costs.of(EQUAL_TIME[arm.same_updates_as], 0.0)
    batches = max(1, photos // base.train.batch_size)
    updates = batches * changed_recipe(base, arm.changes).mask.per_image
    epochs = max(1, round(60 * minutes / mean / updates))
    schedule = {"epochs": epochs, "warmup_epochs": min(0.05 * epochs, epochs)}
    changes = [f"train.{key}={value}" for key, value in schedule.items()]
    ratios = ", ".join(f"{start}: {ratio}" for start, ratio in stages.items())
    return changed_recipe(
        base, [*arm.changes, *changes, f"mask.ratio={{{ratios}}}", f"seed={seed}"]
    )


def run(arguments: argparse.Namespace) -> None:
    """Compute the missing cells."""
    photos = training_photos(arguments.base, arguments.data, arguments.out)
    listed = PROTOCOLS[arguments.base].listing
    unlabeled = photos if listed else photos / "train"
    changes = [f"data.path={unlabeled}", f"teacher.path={arguments.teacher}"]
    changes += [f"student.path={arguments.student}"] if arguments.student else []
    base = load_recipe(HERE / f"{arguments.base}.yaml", changes)
    costs = Costs(arguments.out / f"{arguments.base}.costs.json", base)
    count = len(open_splits(base.data)["train"])
    features = PROTOCOLS[arguments.base].task == "classify"  # what a teacher can be scored by
    arms = [name for name in arguments.arms if features or name not in NO_STUDENT]
    # All costs are measured here, before anything else runs.
    cells = [
        (recipe_of(name, base, seed, minutes, count, costs), name, minutes)
        for seed in arguments.seeds
        for minutes in arguments.minutes
        for name in arms
    ]
    fill = partial(_fill, arguments, arguments.data if listed else photos)
    if arguments.jobs == 1:
        for cell in cells:
            fill(*cell)
        return
    # A process that has used CUDA cannot be forked.
    with ProcessPoolExecutor(
        arguments.jobs, get_context("spawn"), torch.set_num_threads, (arguments.threads,)
    ) as pool:
        for _ in pool.map(fill, *zip(*cells, strict=True)):
            pass


def _fill(
    arguments: argparse.Namespace, annotated: Path, recipe: Recipe, name: str, minutes: float
) -> None:
    slug = name.replace(", ", "-").replace(" ", "-")
    kind = "chosen-by" if arguments.choose else "equal"
    file = arguments.out / f"{arguments.base}.{kind}.{slug}.{recipe.seed}-{minutes:g}min.json"
    if file.is_file():
        return
    if name in NO_STUDENT:
        scores = score_teacher(recipe, annotated, class_token=name == CLASS_TOKEN)
    else:
        with nullcontext() if arguments.jobs > 1 else _empty_cache():
            scores = score_cell(
                recipe,
                fresh(arguments.out / "runs" / file.stem),
                annotated,
                scratch=name in SCRATCH,
                finetuned=not arguments.choose,
            )
    if arguments.choose:
        scores |= scores.pop("val")
    if arguments.jobs > 1:  # these are times of a shared machine
        scores = {key: value for key, value in scores.items() if not key.startswith("seconds")}
    cell = {
        "base": arguments.base,
        "kind": kind,
        "arm": name,
        "seed": recipe.seed,
        "minutes": minutes,
        "epochs": 0 if name in {*SCRATCH, *NO_STUDENT} else recipe.train.epochs,
        "ratio": recipe.model_dump(mode="json")["mask"]["ratio"],
        **scores,
        "machine": environment().cpu,
        "precision": resolve_precision(recipe.train.precision),
        "torch": torch.__version__,
    }
    write_json(file, cell)
    print(json.dumps(cell), flush=True)


@contextmanager
def _empty_cache() -> Iterator[None]:
    """No targets from other cells: the teacher runs, and its time is measured."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, HGKD_EDGE_CACHE=folder),
    ):
        yield


def plot(folder: Path, base: str, picture: Path) -> None:
    """Plot the scores on `val` against minutes and epochs: a line per arm with several times."""
    from matplotlib.figure import Figure

    cells = [cell for cell in read_cells(folder) if cell["base"] == base and "epochs" in cell]
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    rows = {"minutes of one core": "minutes", "epochs": "epochs"}
    columns = {"k-NN": "knn", "linear probe": "linear_probe"}
    grid = figure.subplots(2, 2, sharey="col")
    for axes, (label, x) in zip(grid, rows.items(), strict=True):
        for axis, (score, y) in zip(axes, columns.items(), strict=True):
            for arm in EQUAL_TIME:
                points = _mean_points([cell for cell in cells if cell["arm"] == arm], x, y)
                if len(points) > 1:
                    axis.plot(*zip(*points, strict=True), marker="o", label=arm)
            axis.set(xscale="log", xlabel=label, ylabel=f"{score} on val, %")
            ticks = sorted({at for line in axis.lines for at in line.get_xdata()})
            # A number that would overlap the one before it is not written.
            near = {tick for tick in ticks if any(1 < tick / other < 1.05 for other in ticks)}
            axis.set_xticks(ticks, ["" if tick in near else f"{tick:g}" for tick in ticks])
            axis.tick_params(axis="x", labelsize=7)
            axis.minorticks_off()
    grid[0][0].legend(fontsize="small")
    figure.savefig(picture, dpi=150)


def _mean_points(cells: list[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """(x, mean percent over the seeds on `val`), in the order of x."""
    scores: dict[float, list[float]] = {}
    for cell in cells:
        # A cell that is not scored on `test` has the scores on `val` as its own.
        score = cell.get("val", cell).get(y)
        if score is not None:  # some were only fine-tuned
            scores.setdefault(cell[x], []).append(100 * score)
    return [(key, statistics.mean(scores[key])) for key in sorted(scores)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.equal_time")
    commands = parser.add_subparsers(dest="command", required=True)
    fill = commands.add_parser("run", help="fill in cells that are missing")
    fill.add_argument("--data", type=Path, required=True, help="the data set's folder")
    fill.add_argument("--teacher", type=Path, required=True, help="weights of the base's teacher")
    fill.add_argument("--student", type=Path, help="weights of the base's student, if it has any")
    fill.add_argument(
        "--minutes", type=float, nargs="+", default=[5.0], help="of the student's updates"
    )
    fill.add_argument("--seeds", type=int, nargs="+", default=[0])
    usual = [name for name in EQUAL_TIME if name not in ON_REQUEST]
    fill.add_argument("--arms", nargs="+", choices=EQUAL_TIME, default=usual)
    fill.add_argument(
        "--choose", action="store_true", help="k-NN and probe on `val` only, to choose by"
    )
    fill.add_argument("--threads", type=int, default=1, help="of each cell")
    fill.add_argument("--jobs", type=int, default=1, help="cells to compute at once")
    show = commands.add_parser("report", help="the figures so far as Markdown on stdout")
    show.add_argument("--plot", type=Path, help="picture of score against minutes and epochs")
    for command in (fill, show):
        command.add_argument("--base", default="imagenette")
        command.add_argument("--out", type=Path, required=True, help="folder of cells and runs")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(report(arguments.out))
        if arguments.plot:
            plot(arguments.out, arguments.base, arguments.plot)
        return
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run(arguments)


if __name__ == "__main__":
    main()
