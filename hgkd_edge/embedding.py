"""Features of images from a distilled backbone: for search, deduplication and active learning.

Works from the base install for ONNX files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from exporters import runtimes
from exporters.onnx_info import onnx_info, require_image_input
from hgkd_edge.cells import counted
from hgkd_edge.console import track_steps
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.names import readable
from hgkd_edge.data.spread import evenly
from hgkd_edge.errors import (
    DataError,
    MissingPackageError,
    RunError,
    raise_if_out_of_memory,
    reason_of,
)
from hgkd_edge.files import atomic_write, require_writable_folder
from hgkd_edge.predict import image_files
from hgkd_edge.run_files import require_recorded
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.answers import load_photo
from hgkd_edge.tasks.pictures import save_picture, side_by_side

__all__ = [
    "Embedded",
    "Embedder",
    "Summary",
    "draw_neighbors",
    "embed",
    "nearest",
    "open_embedder",
]

BATCH = 32
FORMATS = (".npz", ".parquet")
SHOWN = 8  # rows of the picture
NEIGHBORS = 5  # neighbors per row, after the image itself
SIDE = 128  # pixels of an image in the picture


@dataclass(frozen=True)
class Embedder:
    """A backbone: normalized images f32[B, 3, H, W] -> embeddings f32[B, D], and its input."""

    run: Callable[[np.ndarray], np.ndarray]
    input: InputSpec


@dataclass(frozen=True)
class Embedded:
    """The result for all images.

    Attributes:
        files: Images that were embedded.
        features: Float32 [n, D], one row each.
        skipped: Images that cannot be read, with the reason.
        bits: Bits used by 16-bit files; 0: all 16.
    """

    files: list[Path]
    features: np.ndarray
    skipped: list[tuple[str, str]]
    bits: int = 0


def open_embedder(path: Path) -> Embedder:
    """Open a run's backbone (PyTorch), or a backbone exported to ONNX.

    Raises:
        RunError: It is neither.
        MissingPackageError: PyTorch is missing.
    """
    if path.suffix == ".onnx":
        if not path.is_file():
            raise RunError(f"{path}: no such file")
        require_recorded(path)
        info = onnx_info(path)
        require_image_input(path, info)
        runner = runtimes.open(path).run
        try:
            spec = InputSpec.from_metadata(info.metadata, geometry="cover")
        except (KeyError, ValueError, TypeError) as error:
            raise RunError(f"{path}: does not describe its input ({reason_of(error)})") from error
        if "embedding" not in [output.name for output in info.outputs]:
            raise RunError(
                f"{path}: has no output 'embedding'", hint="hgkd-edge export RUN --backbone"
            )
        return Embedder(lambda images: runner(images)["embedding"], spec)
    run = RunDir.resolve(path)
    try:
        import torch

        from hgkd_edge.models.backbone import load_embedding_net
    except ImportError as error:
        raise MissingPackageError(
            f"embedding with {path}", extra="train", package="torch"
        ) from error
    file = run.require(run.backbone_file, fix=run.resume_command)
    network = load_embedding_net(file).eval()
    about = network.spec
    spec = InputSpec(about.size, about.mean, about.std, "cover", about.bits)

    @torch.inference_mode()
    def compute(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = network(torch.from_numpy(images)).float().numpy()
        return found

    return Embedder(compute, spec)


def embed(model: Path, images: Sequence[Path], out: Path | None = None) -> Embedded:
    """Embed images, and write the features if there is a file for them.

    Args:
        model: What `open_embedder` takes.
        images: Image files, or folders of them.
        out: `.npz` (arrays `features` float32 [n, D] and `images`) or `.parquet` (columns `image`
            and `features`; needs pyarrow).

    Raises:
        RunError: The model cannot be opened.
        DataError: There are no images, none can be read, or `out` has another suffix.
        MissingPackageError: pyarrow is missing.
    """
    write = _writer(out) if out is not None else None
    embedder = open_embedder(model)
    files = list(image_files(images, but=out))
    kept: list[Path] = []
    rows: list[np.ndarray] = []
    skipped: list[tuple[str, str]] = []
    with track_steps("embedding", total=len(files)) as show:
        for start in range(0, len(files), BATCH):
            batch = list(_read(files[start : start + BATCH], embedder.input, skipped))
            if batch:
                kept += [file for file, _ in batch]
                rows.append(embedder.run(np.concatenate([pixels for _, pixels in batch])))
            show(min(start + BATCH, len(files)), "")
    if not rows:
        first = f"the first, {skipped[0][0]}: {skipped[0][1]}"
        raise DataError(f"none of {counted(len(files), 'image')} could be read; {first}")
    found = Embedded(kept, np.concatenate(rows).astype(np.float32), skipped, embedder.input.bits)
    if out is not None and write is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as temporary:
            write(found, temporary)
    return found


def nearest(features: np.ndarray, count: int, rows: Sequence[int] | None = None) -> np.ndarray:
    """The nearest other rows of each row by cosine similarity, around the mean: int [m, count].

    Args:
        features: Float [n, D].
        count: Neighbors per row, at most n - 1.
        rows: The m rows whose neighbors are wanted; None: all n.
    """
    centered = features - features.mean(axis=0)
    unit = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    wanted = np.arange(len(unit)) if rows is None else np.asarray(rows)
    found = []
    for start in range(0, len(wanted), 1024):
        own = wanted[start : start + 1024]
        similarity = unit[own] @ unit.T
        similarity[np.arange(len(own)), own] = -np.inf
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def draw_neighbors(embedded: Embedded, path: Path) -> Path:
    """Draw a few images, each with its nearest neighbors to the right."""
    shown = evenly(len(embedded.files), SHOWN)
    neighbors = nearest(embedded.features, min(NEIGHBORS, len(embedded.files) - 1), shown)
    rows = [
        side_by_side([_thumbnail(embedded.files[j], embedded.bits) for j in (i, *others)])
        for i, others in zip(shown, neighbors, strict=True)
    ]
    picture = Image.new("RGB", (rows[0].width, sum(row.height + 4 for row in rows) - 4), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + 4
    return save_picture(picture, path)


def _thumbnail(file: Path, bits: int) -> Image.Image:
    image = load_photo(file, bits=bits)
    image.thumbnail((SIDE, SIDE))
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square


def _read(
    files: Sequence[Path], spec: InputSpec, skipped: list[tuple[str, str]]
) -> Iterator[tuple[Path, np.ndarray]]:
    for file in files:
        try:
            yield file, spec.array(load_photo(file, bits=spec.bits))
        except Exception as error:  # a damaged file may raise anything
            raise_if_out_of_memory(error, file)
            reason = reason_of(error)
            skipped.append((str(file), reason.removeprefix(f"{file}: ")))


def _writer(out: Path) -> Callable[[Embedded, Path], None]:
    if out.suffix not in FORMATS:
        raise DataError(f"--out {out}: must end in {' or '.join(FORMATS)}")
    require_writable_folder(out)
    return _write_npz if out.suffix == ".npz" else _parquet_writer()


def _write_npz(found: Embedded, file: Path) -> None:
    names = np.array([readable(str(name)) for name in found.files])
    with file.open("wb") as stream:
        np.savez(stream, features=found.features, images=names)


def _parquet_writer() -> Callable[[Embedded, Path], None]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError("writing Parquet", extra="hf", package="pyarrow") from error

    def write(found: Embedded, file: Path) -> None:
        width = found.features.shape[1]
        values = pyarrow.array(found.features.reshape(-1))
        columns: dict[str, Any] = {
            "image": [readable(str(name)) for name in found.files],
            "features": pyarrow.FixedSizeListArray.from_arrays(values, width),
        }
        parquet.write_table(pyarrow.table(columns), file)

    return write


@dataclass(frozen=True)
class Summary:
    """The command's result: the files that it wrote, and what is in them.

    Attributes:
        features: The file of the features; None if none was written.
        images: Number of embedded images.
        width: Of a feature vector.
        skipped: As in `Embedded`.
        neighbors: The picture of nearest neighbors; None if none was drawn.
    """

    features: str | None
    images: int
    width: int
    skipped: list[tuple[str, str]]
    neighbors: str | None = None

    @classmethod
    def of(cls, embedded: Embedded, out: Path | None, picture: Path | None) -> Summary:
        """What was written to `out`, and drawn to `picture`."""
        count, width = embedded.features.shape
        written, drawn = (None if file is None else str(file) for file in (out, picture))
        return cls(written, count, width, embedded.skipped, drawn)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        fields = {**asdict(self), "skipped": [list(fault) for fault in self.skipped]}
        return {k: v for k, v in fields.items() if k != "neighbors" or v is not None}

    def lines(self) -> Iterator[str]:
        """The same as readable text."""
        where = f" in {self.features}" if self.features else ""
        yield f"features: {counted(self.images, 'image')} x {self.width}{where}"
        if self.skipped:
            where, why = self.skipped[0]
            yield f"skipped: {counted(len(self.skipped), 'image')}, such as {where}: {why}"
        if self.neighbors:
            yield f"nearest neighbors: {self.neighbors}"
