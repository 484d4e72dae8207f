"""CPU time of a teacher's targets for a batch, next to that of an update of the student.

    python -m benchmarks.study.teacher_time --teacher vit.safetensors [--base imagenette-mobilenet]

One thread; the pixels are random.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.study.equal_time import HERE, seconds_per_update
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.setup import make_teacher
from hgkd_edge.distillation.teacher_weights import load_vit_weights
from hgkd_edge.recipe import Recipe, load_recipe


def seconds_per_batch(recipe: Recipe, weights: Path, *, rounds: int = 4) -> float:
    """The fastest of a few passes of the teacher."""
    parts = build(recipe, download=False)
    load_vit_weights(parts.vit, weights)
    teacher = make_teacher(recipe, parts).eval()
    images = torch.rand(recipe.train.batch_size, 3, *recipe.data.size)
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        with torch.inference_mode():
            teacher(images)
        taken.append(time.process_time() - begin)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="weights of the base's teacher")
    parser.add_argument("--base", default="imagenette")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes = ["mask.ratio=0", f"teacher.path={arguments.teacher}"]
    recipe = load_recipe(HERE / f"{arguments.base}.yaml", changes)
    targets, update = seconds_per_batch(recipe, arguments.teacher), seconds_per_update(recipe)
    print(f"targets {targets:.2f} s, update {update:.2f} s, ratio {targets / update:.2f}")


if __name__ == "__main__":
    main()
