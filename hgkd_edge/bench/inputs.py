"""Inputs for timing a model: real images when given, else a fixed-seed tensor.

Times rarely depend on the values, but they can (denormals, early exits, INT8 saturation), so the
record states which was used.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.records import InputInfo
from hgkd_edge.errors import DeviceError, RunError
from hgkd_edge.parsing import parse_json, require_file

__all__ = ["SEED", "load_images", "make_inputs"]

SEED = 0
MAX_IMAGES_BYTES = 2**32  # of a file of prepared images
MAX_INPUT_VALUES = 2**27  # of one input: a model may state any size

# A free height or width without a hint in the metadata: the size nearly every backbone is
# published at. The record shows the shape that was fed.
_USUAL_SIDE = 224


def load_images(path: Path) -> np.ndarray:
    """f32[N, 3, H, W] from a .npy file.

    Raises:
        RunError: Missing, not a .npy file, or of another type or shape.
    """
    fix = "numpy.save('images.npy', images) with f32[N, 3, H, W], normalized as the model expects"
    try:
        require_file(path, MAX_IMAGES_BYTES, kind="image array")
        # Mapped: the header may state any shape, and numpy would allocate it first.
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not readable"
        raise RunError(f"images '{path}': {reason}", hint=fix) from error
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.float32:
        kind = f"{images.dtype}{list(images.shape)}" if isinstance(images, np.ndarray) else "a .npz"
        raise RunError(f"images '{path}' are {kind}, not f32[N, 3, H, W]", hint=fix)
    if len(images) == 0 or not np.isfinite(images).all():
        raise RunError(f"images '{path}' are empty or not finite", hint=fix)
    return np.array(images)


def make_inputs(
    model: ModelFile, *, batch: int, images: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], list[InputInfo]]:
    """Arrays for one inference, and their record.

    Args:
        model: The model whose inputs are filled.
        batch: Batch size B.
        images: f32[N, 3, H, W], normalized as the model expects; repeated in order to fill B.

    Returns:
        Name -> array as the graph wants it ([B, 3, H, W] for an image model), and one record each.

    Raises:
        DeviceError: The graph's batch is fixed to another size, or the images have another shape.
    """
    fixed = model.fixed_batch()
    if fixed is not None and fixed != batch:
        raise DeviceError(
            f"'{model.path}' takes batches of {fixed} only, not {batch}",
            hint=f"--batch {fixed}, or export it with a dynamic batch",
        )
    rng = np.random.default_rng(SEED)
    arrays: dict[str, np.ndarray] = {}
    records: list[InputInfo] = []
    for tensor in model.info.inputs:
        shape = _concrete(tensor.shape, batch, model.info.metadata)
        if math.prod(shape) > MAX_INPUT_VALUES:
            raise DeviceError(
                f"'{model.path}': input '{tensor.name}' of {list(shape)} has more than "
                f"{MAX_INPUT_VALUES:,} values",
                hint="use a smaller --batch, or a model of a smaller input",
            )
        given = images if len(shape) == 4 else None
        array = _random(shape, tensor.dtype, rng) if given is None else _fill(given, shape, model)
        arrays[tensor.name] = np.ascontiguousarray(array.astype(tensor.dtype))
        records.append(
            InputInfo(
                name=tensor.name,
                shape=list(shape),
                dtype=tensor.dtype,
                source="synthetic" if given is None else "images",
                seed=SEED if given is None else None,
            )
        )
    return arrays, records


def _concrete(
    shape: tuple[int | str, ...], batch: int, metadata: dict[str, str]
) -> tuple[int, ...]:
    """Assign sizes to the free axes: the first is the batch, the rest an image's, channels first or
    (with preprocessing inside the model) last."""
    try:
        channels, height, width = map(int, parse_json(metadata.get("hgkd_edge.input_size", "")))
    except (ValueError, TypeError, OverflowError):  # not written by our exporter
        channels, height, width = 3, _USUAL_SIDE, _USUAL_SIDE
    free = [batch, *[width] * (len(shape) - 1)]
    if len(shape) == 4:
        last = shape[3] == channels and shape[1] != channels
        free = [batch, height, width, channels] if last else [batch, channels, height, width]
    return tuple(
        size if isinstance(size, int) and size > 0 else usual
        for size, usual in zip(shape, free, strict=False)
    )


def _random(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    if np.issubdtype(np.dtype(dtype), np.floating):
        return rng.standard_normal(shape, dtype=np.float32)
    return rng.integers(0, 256, shape) if dtype == "uint8" else np.ones(shape)


def _fill(images: np.ndarray, shape: tuple[int, ...], model: ModelFile) -> np.ndarray:
    if tuple(images.shape[1:]) != shape[1:]:
        raise DeviceError(
            f"the images are {list(images.shape[1:])}, '{model.path}' takes {list(shape[1:])}",
            hint="resize the images to the model's input",
        )
    return images[np.arange(shape[0]) % images.shape[0]]
