"""Teachers trained on the user's own images by MAE and by iBOT, for equal time.

    python -m benchmarks.study.objectives --data clothing10-160 --minutes 40 --out study

The architecture is that of `recipes/demo-teacher.yaml`, without the stage that uses labels. The
cost of an epoch is measured first, in CPU time of one thread (on a GPU: wall clock); each objective
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


def trained(recipe: Recipe) -> tuple[Path, float]:
    """The weights of a teacher, and the seconds that its training took."""
    parts = build(recipe, download=False)
    source = open_splits(recipe.data)["train"]
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begin = clock()
    weights = pretrain_teacher(parts.vit, source, recipe, size=parts.teacher_size)
    return weights, clock() - begin


def compared(recipe: Path, data: Path, changes: list[str], minutes: float) -> dict[str, Any]:
    """Train one teacher for the given minutes, and score it."""
    changes = [f"data.path={data}", "teacher.pretrain.label_epochs=0", *changes]

    def of(epochs: int) -> tuple[Path, float]:
        return trained(load_recipe(recipe, [*changes, f"teacher.pretrain.epochs={epochs}"]))

    of(2)  # the first training of a process also loads libraries
    epoch = (of(3)[1] - of(1)[1]) / 2  # without what happens once in a training
    epochs = max(1, round(60 * minutes / max(epoch, 1e-3)))
    weights, seconds = of(epochs)
    scored = load_recipe(recipe, [*changes, "teacher.weights=path", f"teacher.path={weights}"])
    scores = score_teacher(scored, data)
    return {
        "epochs": epochs,
        "seconds": round(seconds),
        **{name: scores[name] for name in ("knn", "linear_probe")},
        "machine": environment().cpu,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="{train,val,test}/<class>/*.jpg")
    parser.add_argument("--minutes", type=float, default=40.0, help="time of each training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--objectives", nargs="+", default=["mae", "ibot"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # A teacher that is found in the cache would cost nothing.
    os.environ["HGKD_EDGE_CACHE"] = str(fresh(arguments.out / "cache"))
    settings = {"batch_size": arguments.batch_size, "lr": arguments.lr}
    same = [f"teacher.pretrain.{key}={value}" for key, value in settings.items()]
    for objective in arguments.objectives:
        changes = [*same, f"teacher.pretrain.objective={objective}"]
        result = {"objective": objective, **settings} | compared(
            RECIPE, arguments.data, changes, arguments.minutes
        )
        write_json(arguments.out / f"objective.{objective}.json", result)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
