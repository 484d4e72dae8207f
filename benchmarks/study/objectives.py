"""Teachers trained on the user's own images by MAE and by iBOT, for equal time.

    python -m benchmarks.study.objectives --data clothing10-160 --minutes 10 --out study

The architecture and the learning rate are those of `recipes/demo-teacher.yaml`, without the stage
that uses labels. The cost of an epoch is measured first, in CPU time of one thread; each objective
then gets the epochs that fit. Both are scored by k-NN and a linear probe on the mean patch token.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.cell import score_teacher
from benchmarks.study.protocols import fresh
from hgkd_edge.bench.environment import environment
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.pretrain import pretrain_teacher
from hgkd_edge.files import write_json
from hgkd_edge.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "demo-teacher.yaml"
OBJECTIVES = ("mae", "ibot")
NO_LABELS = "teacher.pretrain.label_epochs=0"


def trained(recipe: Recipe) -> tuple[Path, float]:
    """The weights of a teacher, and the CPU seconds that its training took."""
    parts = build(recipe, download=False)
    source = open_splits(recipe.data)["train"]
    begin = time.process_time()
    weights = pretrain_teacher(parts.vit, source, recipe, size=parts.teacher_size)
    return weights, time.process_time() - begin


def run(data: Path, objective: str, minutes: float, batch_size: int) -> dict[str, Any]:
    """Train and score one teacher."""
    settings = {"objective": objective, "batch_size": batch_size}
    changes = [f"teacher.pretrain.{key}={value}" for key, value in settings.items()]
    changes += [f"data.path={data}", NO_LABELS]
    _, short = trained(load_recipe(RECIPE, [*changes, "teacher.pretrain.epochs=1"]))
    _, longer = trained(load_recipe(RECIPE, [*changes, "teacher.pretrain.epochs=3"]))
    epoch = (longer - short) / 2  # without what happens once
    epochs = max(1, round(60 * minutes / epoch))
    weights, seconds = trained(load_recipe(RECIPE, [*changes, f"teacher.pretrain.epochs={epochs}"]))
    scored = load_recipe(RECIPE, [*changes, "teacher.weights=path", f"teacher.path={weights}"])
    scores = score_teacher(scored, data)
    return {
        "objective": objective,
        "epochs": epochs,
        "cpu_seconds": round(seconds),
        **{name: scores[name] for name in ("knn", "linear_probe")},
        "machine": environment().cpu,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="{train,val,test}/<class>/*.jpg")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU time of each training")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # A teacher that is found in the cache would cost nothing.
    os.environ["HGKD_EDGE_CACHE"] = str(fresh(arguments.out / "cache"))
    for objective in arguments.objectives:
        result = run(arguments.data, objective, arguments.minutes, arguments.batch_size)
        write_json(arguments.out / f"objective.{objective}.json", result)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
