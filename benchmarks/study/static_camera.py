"""Does distillation help if the camera never moves and the frames are nearly equal?

    python -m benchmarks.study.static_camera --out static

Renders frames of one scene: a constant background, sensor noise, slowly drifting brightness, and
one small object somewhere in three of four frames. Background and objects are the CC0 photos of
this package. An object in `val` or `test` never appears in a training frame. The task is to
classify which kind of object is present, or none.

Every cell (setting, seed) writes one JSON file and is skipped if that file exists.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.study.arms import STATIC_CAMERA
from benchmarks.study.cell import score_cell
from benchmarks.study.report import table
from hgkd_edge.bench.environment import environment
from hgkd_edge.files import write_json
from hgkd_edge.recipe import load_recipe

BUNDLED = Path(__file__).parents[2] / "hgkd_edge" / "data" / "bundled" / "clothing10.zip"
RECIPE = Path(__file__).with_name("static.yaml")
KINDS = ("hat", "pants", "shoes")
SIDE, TILE, OBJECT = 128, 32, 40  # pixels: of a frame, of an image of the background, of an object
NOISE, DRIFT = 2.0, 0.05  # gray levels of sensor noise; share of the brightness that drifts
FRAMES = {"train": 400, "val": 100, "test": 200}


def render(out: Path, frames: dict[str, int] = FRAMES, seed: int = 0) -> Path:
    """Write the frames as `out/SPLIT/KIND/NUMBER.png`; KIND is `none` if there is no object."""
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(BUNDLED) as archive:
        background = _background(archive, random)
        known = {kind: _photos(archive, f"train/{kind}/") for kind in KINDS}
        new = {kind: _photos(archive, f"test/{kind}/") for kind in KINDS}
    number = 0
    for split, count in frames.items():
        for _ in range(count):
            kind = random.choice((*KINDS, "none"))
            frame = background.copy()
            if kind != "none":
                pool = (known if split == "train" else new)[kind]
                thing = pool[random.integers(len(pool))].resize((OBJECT, OBJECT))
                frame.paste(thing, tuple(random.integers(0, SIDE - OBJECT + 1, 2).tolist()))
            file = out / split / kind / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            _as_a_camera_sees(frame, number, random).save(file)
            number += 1
    return out


def _background(archive: zipfile.ZipFile, random: np.random.Generator) -> Image.Image:
    """A mosaic of images of kinds that are not objects."""
    photos = _photos(archive, "test/t-shirt/")
    scene = Image.new("RGB", (SIDE, SIDE))
    for place, chosen in enumerate(random.permutation(len(photos))[: (SIDE // TILE) ** 2]):
        row, column = divmod(place, SIDE // TILE)
        scene.paste(photos[chosen].resize((TILE, TILE)), (column * TILE, row * TILE))
    return scene


def _photos(archive: zipfile.ZipFile, folder: str) -> list[Image.Image]:
    names = sorted(name for name in archive.namelist() if name.startswith(folder))
    return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def _as_a_camera_sees(frame: Image.Image, number: int, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(frame, dtype=np.float32)
    pixels = pixels * (1 + DRIFT * np.sin(number / 40)) + random.normal(0, NOISE, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of frames, runs and cells")
    parser.add_argument("--settings", nargs="+", choices=STATIC_CAMERA, default=list(STATIC_CAMERA))
    parser.add_argument("--set", nargs="+", default=[], help="changes to the recipe of all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    frames = arguments.out / "frames"
    if not frames.is_dir():
        render(frames)
    cells = []
    for seed in arguments.seeds:
        for setting in arguments.settings:
            name = f"static.static.{setting}.{seed}".replace(" ", "-").replace(",", "")
            file = arguments.out / f"{name}.json"
            if not file.is_file():
                changes = [
                    f"data.path={frames}",
                    *STATIC_CAMERA[setting],
                    *arguments.set,
                    f"seed={seed}",
                ]
                recipe = load_recipe(RECIPE, changes)
                run = arguments.out / "runs" / name
                scratch = setting.startswith("scratch")
                cell = score_cell(recipe, run, frames, scratch=scratch, finetuned=True)
                head = {"base": "static", "kind": "static", "arm": setting, "seed": seed}
                write_json(file, {**head, **cell, "machine": environment().cpu})
            cells.append(json.loads(file.read_text()))
    print(table(cells, list(arguments.settings)))


if __name__ == "__main__":
    main()
