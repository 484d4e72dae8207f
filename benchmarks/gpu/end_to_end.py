"""`hgkd-edge distill` on synthetic images, as started by a user; and the image decoding rate."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks.gpu.measure import Scale
from benchmarks.gpu.update import MASKS

__all__ = ["decode_rates", "distill"]

EPOCHS = 4


def distill(scale: Scale, folder: Path) -> dict[str, Any]:
    """Images per second and share of time waiting for images, after the first epoch.

    Args:
        scale: Measurement scale.
        folder: An empty folder for images, teacher and run.
    """
    _photos(scale, folder / "photos")
    vit = timm.create_model(scale.teacher, num_classes=0)
    save_file(dict(vit.state_dict()), folder / "teacher.safetensors")
    recipe = {
        "name": "gpu",
        "data": {"path": str(folder / "photos"), "image_size": scale.size, "decode": "streaming"},
        "teacher": {
            "name": scale.teacher,
            "weights": "path",
            "path": str(folder / "teacher.safetensors"),
        },
        "student": {"name": "resnet50"},
        "mask": {"per_image": MASKS},
        "train": {"epochs": EPOCHS, "batch_size": scale.batch, "trackers": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run, begin = folder / "run", time.perf_counter()
    command = [sys.executable, "-m", "hgkd_edge", "distill", str(folder / "recipe.yaml")]
    done = subprocess.run([*command, "--run", str(run)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"distill ended with {done.returncode}: {done.stderr[-800:]}")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    later = [line for line in lines if line["epoch"]]
    return {
        "student": "resnet50", "teacher": scale.teacher, "masks": MASKS, "photos": scale.photos,
        "seconds": round(time.perf_counter() - begin, 1),
        "images_per_s": statistics.median(line["images_per_s"] for line in later),
        "waiting": statistics.median(line["data_share"] for line in later),
        "warnings": [line for line in done.stderr.splitlines() if "warning" in line],
    }  # fmt: skip


def _photos(scale: Scale, folder: Path) -> None:
    """JPEGs of 500 x 375 with as much detail as photos."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(scale.photos):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-12, 13, smooth.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{i:05d}.jpg", quality=90
        )


def decode_rates() -> list[dict[str, Any]] | None:
    """The output of `benchmarks.decode`; None if the checkout does not contain it."""
    if importlib.util.find_spec("benchmarks.decode") is None:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decode", "--rounds", "1", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
