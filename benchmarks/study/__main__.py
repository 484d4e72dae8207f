"""Command line of the study; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from benchmarks.study.arms import ABLATION, ARMS, SCRATCH, TEACHERS, spelled
from benchmarks.study.cell import score_cell, score_teacher
from benchmarks.study.protocols import PROTOCOLS, fresh, training_photos
from benchmarks.study.report import report
from hgkd_edge.console import console
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.pretrain import pretrain_teacher
from hgkd_edge.files import write_json
from hgkd_edge.recipe import Recipe, load_recipe

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fill in cells that are missing")
    run.add_argument("base", choices=PROTOCOLS)
    run.add_argument("--data", type=Path, required=True, help="the data set's folder")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    run.add_argument("--ablation", action="store_true", help="the ablation instead of the arms")
    run.add_argument("--changes", nargs="+", choices=ABLATION, default=list(ABLATION))
    show = commands.add_parser("report", help="the figures so far as Markdown on stdout")
    for command in (run, show):
        command.add_argument("--out", type=Path, required=True, help="folder of cells and runs")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(report(arguments.out))
        return
    if arguments.ablation:
        table = {change: ABLATION[change] for change in arguments.changes}
    else:
        table = {arm: ARMS[arm] for arm in arguments.arms}
    for seed in arguments.seeds:
        for arm, changes in table.items():
            _fill(arguments, arm, changes, seed)


def _fill(arguments: argparse.Namespace, arm: str, changes: list[str], seed: int) -> None:
    kind = "ablation" if arguments.ablation else "arms"
    name = f"{arguments.base}.{kind}.{arm}.{seed}".replace(", ", "-").replace(" ", "-")
    file = arguments.out / f"{name}.json"
    if file.is_file():
        return
    console.rule(name)
    base = HERE / f"{arguments.base}.yaml"
    epochs = load_recipe(base).train.epochs
    photos = training_photos(arguments.base, arguments.data, arguments.out)
    changes = [f"data.path={photos}", *spelled(changes, epochs)]
    recipe = load_recipe(base, [*changes, *_teacher(load_recipe(base, changes)), f"seed={seed}"])
    if arm in TEACHERS:
        cell = score_teacher(recipe, photos)
    else:
        cell = score_cell(
            recipe,
            fresh(arguments.out / "runs" / name),
            photos if PROTOCOLS[arguments.base].per_class else arguments.data,
            scratch=arm in SCRATCH,
            finetuned=not arguments.ablation,
        )
    where = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    write_json(
        file, {"base": arguments.base, "kind": kind, "arm": arm, "seed": seed, **cell, **where}
    )
    console.print(json.dumps(cell), soft_wrap=True)


def _teacher(recipe: Recipe) -> list[str]:
    """Overrides that name the teacher shared by all seeds; it is trained if missing."""
    parts = build(recipe, download=False)
    source = open_splits(recipe.data)["train"]
    weights = pretrain_teacher(parts.vit, source, recipe, size=parts.teacher_size)
    return ["teacher.weights=path", f"teacher.path={weights}"]


if __name__ == "__main__":
    main()
