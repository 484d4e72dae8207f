"""Where the time of a training step goes, and the gain from several masks per teacher pass.

    python -m benchmarks.step [--teacher vit_small_patch16_224] [--student resnet18] [--json]

Every variant is trained through `hgkd_edge.engine.train` on bundled images, a few batches at a time
and in turn, so that changes in machine load affect all variants. The engine's own parts are timed
(augmentation, teacher, student, optimizer); `other` is the rest of the time in the engine's log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from hgkd_edge.data import augment
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.setup import make_model, make_teacher
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Workplace, train
from hgkd_edge.recipe import Recipe

PARTS = ("data", "augment", "teacher", "student", "optimizer", "other")
# Name -> changes to the base recipe. "dense" is the plain student: everything visible, no masks.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dense, K=1": {"mask": {"ratio": 0.0}},
    "dense, K=4": {"mask": {"ratio": 0.0, "per_image": 4}},
    "sparse, K=1": {},
    "sparse, K=1, teacher compiled": {"train": {"compile": True}},
    "sparse, K=4": {"mask": {"per_image": 4}},
    "sparse, K=4, view visible": {
        "mask": {"per_image": 4},
        "teacher": {"view": "visible"},
        "loss": {"where": "visible"},
    },
}


class Stopwatch:
    """Seconds by part, accumulated; on a GPU each reading waits for the device."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.begun = 0.0

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, *_: Any) -> None:
        self.begun = self.now()

    def stop(self, part: str) -> None:
        now = self.now()
        self.seconds[part] += now - self.begun
        self.begun = now

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time added to `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.start()
            result = call(*args, **kwargs)
            self.stop(part)
            return result

        return timed


@contextlib.contextmanager
def stopwatches(task: Distilling) -> Iterator[Stopwatch]:
    """Time every part of a training step."""
    watch = Stopwatch()
    view, update = augment.random_view, ModelEmaV3.update
    visible = Teacher.forward_visible
    augment.random_view = watch.around("augment", view)
    ModelEmaV3.update = watch.around("optimizer", update)  # type: ignore[method-assign]
    Teacher.forward_visible = watch.around("teacher", visible)  # type: ignore[method-assign]
    hooks = [
        task.teacher.register_forward_pre_hook(watch.start),
        task.teacher.register_forward_hook(lambda *_: watch.stop("teacher")),
        task.model.register_forward_pre_hook(watch.start),
        # Forward, backward and clipping: the student's part ends where the optimizer's starts.
        register_optimizer_step_pre_hook(lambda *_: watch.stop("student")),
        register_optimizer_step_post_hook(lambda *_: watch.stop("optimizer")),
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        augment.random_view = view
        ModelEmaV3.update = update  # type: ignore[method-assign]
        Teacher.forward_visible = visible  # type: ignore[method-assign]


def make_task(recipe: Recipe) -> Distilling:
    """The task as in `distill`, with an untrained teacher, which does not affect the time."""
    parts = build(recipe, download=False)
    teacher = make_teacher(recipe, parts)
    if recipe.train.compile:
        teacher.compile()
    model = make_model(recipe, parts, teacher)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Distilling(model, teacher.to(device), parts, recipe)


def run(recipe: Recipe, task: Distilling, source: ImageSource) -> dict[str, float]:
    """Seconds by part of one update; the first batch of the source is warm-up."""
    with tempfile.TemporaryDirectory() as folder, stopwatches(task) as watch:
        place = Workplace(Path(folder) / "log.jsonl", Path(folder) / "last.pt")
        warm_up = source.subset(torch.arange(recipe.train.batch_size))
        train(task, warm_up, recipe.train, seed=0, place=place, label="warm-up")
        watch.seconds.clear()
        place.log_file.unlink()
        train(task, source, recipe.train, seed=0, place=place, label="measuring")
        records = [json.loads(line) for line in place.log_file.open()]
    batch = recipe.train.batch_size
    whole = [batch / record["images_per_s"] for record in records]
    data = [seconds * r["data_share"] for seconds, r in zip(whole, records, strict=True)]
    parts = {"data": sum(data), **watch.seconds}
    parts["other"] = sum(whole) - sum(parts.values())
    updates = len(records) * recipe.mask.per_image
    return {part: parts.get(part, 0.0) / updates for part in PARTS}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds by part for every variant, and updates per second."""
    base: dict[str, Any] = {
        "name": "step",
        "data": {"source": "bundled", "image_size": arguments.size},
        "teacher": {"name": arguments.teacher, "weights": "hub"},
        "student": {"name": arguments.student},
        "loss": {"where": "all"},
        "train": {
            "epochs": 1,
            "batch_size": arguments.batch,
            "warmup_epochs": 0,
            "trackers": [],
            "precision": arguments.precision,
            "graph": "off",  # parts of a graph cannot be timed; see benchmarks/gpu.sh
        },
    }
    recipes = {
        name: Recipe.model_validate(
            {key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
             for key, value in {"mask": {}, **base}.items()}
        )
        for name, changes in VARIANTS.items()
        if name in arguments.variants
    }  # fmt: skip
    photos = open_splits(next(iter(recipes.values())).data)["train"]
    source = photos.subset(torch.arange(0, arguments.batch * arguments.batches))
    tasks = {name: make_task(recipe) for name, recipe in recipes.items()}
    taken: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, recipe in recipes.items():
            taken[name].append(run(recipe, tasks[name], source))
    result = {
        name: {part: statistics.median(r[part] for r in rounds) for part in PARTS}
        for name, rounds in taken.items()
    }
    rates = {
        name: statistics.median(1 / sum(r.values()) for r in rounds)
        for name, rounds in taken.items()
    }
    return {"seconds_per_update": result, "updates_per_s": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="vit_small_patch16_224")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=1, help="measured in every round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    rates = result["updates_per_s"]
    first = next(iter(rates))
    print(
        f"{'ms per update':<32}" + "".join(f"{part:>10}" for part in PARTS) + f"{'updates/s':>11}"
    )
    for name, parts in result["seconds_per_update"].items():
        figures = "".join(f"{1000 * parts[part]:>10.0f}" for part in PARTS)
        print(f"{name:<32}{figures}{rates[name]:>11.2f}  {rates[name] / rates[first]:.2f}x")


if __name__ == "__main__":
    main()
