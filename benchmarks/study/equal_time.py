"""Masked and dense students at equal time, and the scores of their frozen features.

    python -m benchmarks.study.equal_time run --data imagenette-160 --teacher vit.safetensors \
        --minutes 5 --seeds 0 1 --out study
    python -m benchmarks.study.equal_time report --out study

The cost of an update is measured first, for each ratio, on one thread of a machine that does
nothing else, in CPU time (on a GPU: in time). Every arm then gets the epochs that fit into the
minutes. All arms share the teacher's cached targets, so the teacher costs all the same and is not
counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from benchmarks.study.protocols import training_photos
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distill import distill
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.setup import make_model, make_teacher
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Draws
from hgkd_edge.engine.setup import resolve_precision
from hgkd_edge.evaluate import score_features
from hgkd_edge.models.backbone import load_embedding_net
from hgkd_edge.recipe import Recipe, load_recipe
from hgkd_edge.rundir import RunDir, write_json

HERE = Path(__file__).parent
NO_EMBEDDING = ["loss.embedding_weight=0"]
# Name -> (changes to the base recipe, ratio of the masked stage, its share of the time).
ARMS: dict[str, tuple[list[str], float, float]] = {
    "dense": (NO_EMBEDDING, 0.0, 0.0),
    "dense, embedding": ([], 0.0, 0.0),
    "masked half the time": (NO_EMBEDDING, 0.75, 0.5),
    "masked half the time, embedding": ([], 0.75, 0.5),
    "masked nine tenths, embedding": ([], 0.75, 0.9),
    "half masked half the time, embedding": ([], 0.5, 0.5),
}


def staged(ratio: float, share_of_time: float, masked: float, dense: float) -> dict[float, float]:
    """`mask.ratio` whose first stage takes a share of the *time*.

    Args:
        ratio: Of the first stage; the second sees whole images.
        share_of_time: Of the first stage.
        masked: Seconds of an update of the first stage.
        dense: Seconds of an update of the second.
    """
    if not ratio:
        return {0.0: 0.0}
    first, second = share_of_time / masked, (1 - share_of_time) / dense
    return {0.0: ratio, round(first / (first + second), 4): 0.0}


def seconds_per_update(recipe: Recipe, ratio: float, *, rounds: int = 6) -> float:
    """The fastest of a few updates of the student, its targets given."""
    recipe = recipe.model_copy(update={"mask": recipe.mask.model_copy(update={"ratio": ratio})})
    parts = build(recipe, download=False)
    teacher = make_teacher(recipe, parts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(recipe, parts, teacher).to(device).train()
    count = recipe.train.batch_size
    images = torch.randint(0, 256, (count, 3, *recipe.data.size), dtype=torch.uint8, device=device)
    targets = torch.randn(count, *teacher.center.shape, device=device)
    task = Distilling(model, teacher.to(device), parts, recipe)
    task._shared_targets = lambda view: targets  # type: ignore[method-assign]
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, fused=True)
    average = ModelEmaV3(model, decay=0.999)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        resolve_precision(recipe.train.precision)
    )
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken = []
    for step in range(rounds):
        draws = Draws(torch.Generator().manual_seed(step), 0, 1, device)
        begin = clock()
        for inputs in task.inputs(images, torch.zeros(count), draws):
            with torch.autocast(device.type, low, enabled=low is not None):
                loss = model(*inputs)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((clock() - begin) / task.updates_per_batch)
    return min(taken[1:])


def recipe_of(
    arm: str, base: Recipe, minutes: float, photos: int, costs: dict[str, float]
) -> Recipe:
    """The arm's recipe, with the epochs that fit into the minutes."""
    _, ratio, share = ARMS[arm]
    masked, dense = costs[str(ratio)], costs["0.0"]
    stages = staged(ratio, share, masked, dense)
    first = list(stages)[1] if len(stages) > 1 else 0.0
    mean = first * masked + (1 - first) * dense
    updates = photos // base.train.batch_size * base.mask.per_image
    epochs = max(1, round(60 * minutes / mean / updates))
    changed = {"mask": {**base.mask.model_dump(), "ratio": stages}}
    train = {
        **base.train.model_dump(),
        "epochs": epochs,
        "warmup_epochs": min(0.05 * epochs, epochs),
    }
    return Recipe.model_validate({**base.model_dump(), **changed, "train": train})


def run(arguments: argparse.Namespace) -> None:
    """Fill in the cells that are missing."""
    photos = training_photos(arguments.base, arguments.data, arguments.out)
    changes = [f"data.path={photos}", f"teacher.path={arguments.teacher}"]
    base = load_recipe(HERE / f"{arguments.base}.yaml", changes)
    costs_file = arguments.out / f"{arguments.base}.costs.json"
    costs = json.loads(costs_file.read_text()) if costs_file.is_file() else {}
    for ratio in sorted({ARMS[arm][1] for arm in arguments.arms} | {0.0}):
        if str(ratio) not in costs:
            costs[str(ratio)] = seconds_per_update(base, ratio)
            write_json(costs_file, costs)
    splits = open_splits(base.data)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            _fill(arguments, base, splits, arm, seed, costs)


def _fill(
    arguments: argparse.Namespace,
    base: Recipe,
    splits: dict[str, Any],
    arm: str,
    seed: int,
    costs: dict[str, float],
) -> None:
    name = f"{arguments.base}.equal.{arm.replace(', ', '-').replace(' ', '-')}.{seed}"
    file = arguments.out / f"{name}-{arguments.minutes:g}min.json"
    if file.is_file():
        return
    changes = [f"data.path={base.data.path}", f"teacher.path={arguments.teacher}", f"seed={seed}"]
    own = load_recipe(HERE / f"{arguments.base}.yaml", [*changes, *ARMS[arm][0]])
    recipe = recipe_of(arm, own, arguments.minutes, len(splits["train"]), costs)
    folder = RunDir.create(recipe, arguments.out / "runs" / file.stem)
    begin = time.process_time()
    held_out = distill(recipe, folder)["held_out"]
    network = load_embedding_net(folder.backbone_file)
    scores = score_features(network, splits["train"], splits[arguments.split])
    cell = {
        "base": arguments.base,
        "arm": arm,
        "seed": seed,
        "minutes": arguments.minutes,
        "epochs": recipe.train.epochs,
        "ratio": recipe.model_dump(mode="json")["mask"]["ratio"],
        "cpu_seconds": round(time.process_time() - begin),
        "held_out": held_out,
        "split": arguments.split,
        "knn": scores.knn,
        "linear_probe": scores.linear_probe,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    write_json(file, cell)
    print(json.dumps({key: cell[key] for key in ("arm", "seed", "epochs", "knn", "linear_probe")}))


def table(folder: Path) -> str:
    """All cells as Markdown: mean ± standard deviation over seeds."""
    cells = [json.loads(file.read_text()) for file in sorted(folder.glob("*.equal.*.json"))]
    lines = [
        "| arm | minutes | seeds | epochs | k-NN | linear probe |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for minutes in sorted({cell["minutes"] for cell in cells}):
        for arm in ARMS:
            own = [c for c in cells if (c["arm"], c["minutes"]) == (arm, minutes)]
            if own:
                figures = [_shown([c[key] for c in own]) for key in ("knn", "linear_probe")]
                row = [arm, f"{minutes:g}", str(len(own)), str(own[0]["epochs"]), *figures]
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.equal_time")
    commands = parser.add_subparsers(dest="command", required=True)
    fill = commands.add_parser("run", help="fill in cells that are missing")
    fill.add_argument("--base", default="imagenette")
    fill.add_argument("--data", type=Path, required=True, help="the data set's folder")
    fill.add_argument("--teacher", type=Path, required=True, help="weights of the base's teacher")
    fill.add_argument("--minutes", type=float, default=5, help="of the student's updates")
    fill.add_argument("--seeds", type=int, nargs="+", default=[0])
    fill.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    fill.add_argument("--split", choices=["val", "test"], default="val", help="to score on")
    fill.add_argument("--threads", type=int, default=1)
    show = commands.add_parser("report", help="the figures so far as Markdown on stdout")
    for command in (fill, show):
        command.add_argument("--out", type=Path, required=True, help="folder of cells and runs")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(table(arguments.out))
        return
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run(arguments)


if __name__ == "__main__":
    main()
