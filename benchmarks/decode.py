"""Decoding images for training: from a JPEG's bytes to the canvas, per second and core.

    python -m benchmarks.decode [--images DIR] [--size 224] [--rounds 5] [--json]

Each file is decoded from memory by one thread, the variants interleaved in one process:

    floor        Pillow's decoder at the coarsest scale that still covers the canvas, nothing else
    ours         what distillation does (`hgkd_edge.data.decode`)
    exact        as for held-out images and in `predict`: full scale, the contract's single resize
    pillow       Pillow alone: the same scaled decode, then its own bicubic resize
    torchvision  `torchvision.io.decode_jpeg` at full scale, then torch's resize; `nvjpeg` on a GPU
    simplejpeg, opencv   if installed: scaled decode, then torch's or OpenCV's resize

Without `--images`, mosaics of the bundled images at three sizes replace camera files: real detail
at every size, JPEG quality 88. Time is the process's CPU time (wall clock for `nvjpeg`), the
fastest of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import json
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hgkd_edge.data.decode import Canvas, decode_into
from hgkd_edge.data.folder import BUNDLED
from hgkd_edge.data.resize import cover
from hgkd_edge.data.sources import canvas_of

SIZES = ((500, 375, 16), (1280, 960, 8), (4000, 3000, 3))  # width, height, files
QUALITY = 88
BATCH = 64
Decode = Callable[[bytes], object]


def mosaics(width: int, height: int, count: int) -> Iterator[bytes]:
    """JPEG files made of bundled images, tiled."""
    with zipfile.ZipFile(BUNDLED) as archive:
        names = sorted(archive.namelist())
        photos = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[::5]]
    chooser = np.random.default_rng(width)
    for _ in range(count):
        whole = Image.new("RGB", (width, height))
        top = 0
        while top < height:
            left, row = 0, [photos[i] for i in chooser.integers(0, len(photos), 64)]
            for photo in row:
                whole.paste(photo, (left, top))
                left += photo.width
                if left >= width:
                    break
            top += min(photo.height for photo in row)
        stream = io.BytesIO()
        whole.save(stream, "JPEG", quality=QUALITY)
        yield stream.getvalue()


def floor(canvas: Canvas, content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (canvas.width, canvas.height))
    image.load()
    return image


class Ours:
    """What `hgkd_edge` does: each file is decoded to its place in a batch."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas, self.places = canvas, list[np.ndarray]()

    def __call__(self, content: bytes) -> None:
        if not self.places:
            self.places = list(np.empty((BATCH, 3, *self.canvas.size), np.uint8))
        decode_into(content, self.places.pop(), self.canvas)


def pillow(canvas: Canvas, content: bytes) -> Image.Image:
    return cover(floor(canvas, content), canvas.size, resample=Image.Resampling.BICUBIC)


def resized(canvas: Canvas, pixels: Tensor) -> Tensor:
    """Resize uint8 [3, H, W] until it covers the canvas."""
    height, width = pixels.shape[1:]
    scale = max(canvas.height / height, canvas.width / width)
    size = max(canvas.height, round(height * scale)), max(canvas.width, round(width * scale))
    interpolate = torch.nn.functional.interpolate
    return interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]


def torchvision(canvas: Canvas, content: bytes, *, device: str = "cpu") -> Tensor:
    from torchvision.io import decode_jpeg

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels = decode_jpeg(data, device=device)
    if device == "cpu":
        return resized(canvas, pixels)
    out = resized(canvas, pixels.float())
    torch.cuda.synchronize()
    return out


def simplejpeg(canvas: Canvas, content: bytes) -> Tensor:
    library = importlib.import_module("simplejpeg")
    pixels = library.decode_jpeg(content, min_height=canvas.height, min_width=canvas.width)
    return resized(canvas, torch.from_numpy(pixels).permute(2, 0, 1))


def opencv(canvas: Canvas, content: bytes) -> np.ndarray:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(pixels, (canvas.width, canvas.height), interpolation=cv2.INTER_AREA)


def variants(size: int) -> dict[str, Decode]:
    """The variants available on this machine, by name."""
    margin, contract = (canvas_of(split, (size, size)) for split in ("train", "test"))
    found: dict[str, Decode] = {
        "floor": functools.partial(floor, margin),
        "ours": Ours(margin),
        "exact": Ours(contract),
        "pillow": functools.partial(pillow, margin),
        "torchvision": functools.partial(torchvision, margin),
    }
    for module, decode in (("simplejpeg", simplejpeg), ("cv2", opencv)):
        if importlib.util.find_spec(module):
            found[decode.__name__] = functools.partial(decode, margin)
    if torch.cuda.is_available():
        found["nvjpeg"] = functools.partial(torchvision, margin, device="cuda")
    return found


def measure(files: list[bytes], decoders: dict[str, Decode], rounds: int) -> dict[str, float]:
    """Milliseconds per file, the fastest of `rounds` after one warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in decoders}
    for turn in range(rounds + 1):
        for name, decode in decoders.items():
            clock = time.perf_counter if name == "nvjpeg" else time.process_time
            start = clock()
            for content in files:
                decode(content)
            if turn:
                taken[name].append(1e3 * (clock() - start) / len(files))
    return {name: min(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs of about one size")
    parser.add_argument("--size", type=int, default=224, help="side of what the networks see")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    if arguments.images:
        found = sorted(
            p for p in arguments.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")
        )
        sets = {str(arguments.images): [file.read_bytes() for file in found[:32]]}
    else:
        sets = {f"{w}x{h}": list(mosaics(w, h, count)) for w, h, count in SIZES}
    for name, files in sets.items():
        taken = measure(files, variants(arguments.size), arguments.rounds)
        kilobytes = round(statistics.mean(len(content) for content in files) / 1e3)
        row = {
            "files": name,
            "kilobytes": kilobytes,
            "ms": {key: round(value, 2) for key, value in taken.items()},
            "times_floor": {key: round(v / taken["floor"], 2) for key, v in taken.items()},
        }
        print(json.dumps(row) if arguments.json else _table(row), flush=True)


def _table(row: dict[str, object]) -> str:
    ms, ratios = row["ms"], row["times_floor"]
    assert isinstance(ms, dict)
    assert isinstance(ratios, dict)
    lines = [f"{row['files']}, {row['kilobytes']} kB a file"]
    lines += [
        f"  {key:12} {ms[key]:7.2f} ms  {1e3 / ms[key]:6.0f} / s  {ratios[key]:5.2f} x floor"
        for key in ms
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
