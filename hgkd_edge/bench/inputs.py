"""What is fed to a case, and the outputs that it must give.

Inputs are real images when given, else a fixed-seed tensor. Times rarely depend on the values, but
they can (denormals, early exits, INT8 saturation), so the record states which was used.

Engines and runtimes can silently compute wrong outputs from a correct ONNX file, so verifying the
file at export is not enough: before timing, outputs are compared with those of ONNX Runtime on this
machine. Bounds are those of `exporters.verify`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from exporters import runtimes
from exporters.errors import ExportError
from exporters.runtimes import Outputs
from exporters.runtimes.session import version_of
from exporters.verify import TOLERANCES, Tolerance, verify
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import InputInfo, Verification
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.errors import DeviceError, RunError, WrongOutputs, reason_of
from hgkd_edge.parsing import parse_json, require_file

__all__ = ["Probe", "images_for", "judge", "load_images", "loosest", "make_inputs", "make_probe"]

SEED = 0
MAX_IMAGES_BYTES = 2**32  # of a file of prepared images
MAX_INPUT_VALUES = 2**27  # of one input: a model may state any size

# A free height or width without a hint in the metadata: the size nearly every backbone is
# published at. The record shows the shape that was fed.
_USUAL_SIDE = 224

# Rows of exporters' table, from the tightest. bf16 has 8 bits: emulated on five CNNs, an error of
# 3e-3 to 9e-3, which is within fp16's row.
_ROWS = ("fp32", "tf32", "fp16", "int8")
_ROW_OF = {"bf16": "fp16"}


@dataclass(frozen=True)
class Probe:
    """The inputs of each call (the first is also used for timing), their record, and the outputs
    that the file `onnx` computes: None when nothing can be compared, for this `reason`."""

    feeds: list[dict[str, np.ndarray]] = field(repr=False)
    inputs: list[InputInfo]
    wanted: list[Outputs] | None = field(repr=False)
    onnx: str
    reason: str = ""


def load_images(path: Path) -> np.ndarray:
    """f32[N, 3, H, W] from a .npy file.

    Raises:
        RunError: Missing, not a .npy file, or of another type or shape.
    """
    try:
        require_file(path, MAX_IMAGES_BYTES, kind="image array")
        images = _mapped(path)
        if images.ndim != 4 or images.dtype != np.float32:
            raise ValueError(f"{images.dtype}{list(images.shape)}, not f32[N, 3, H, W]")
        if len(images) == 0 or not np.isfinite(images).all():
            raise ValueError("empty, or not finite")
    except (OSError, ValueError) as error:
        raise RunError(
            f"images '{path}': {getattr(error, 'strerror', None) or reason_of(error)}",
            hint="numpy.save('images.npy', images) with f32[N, 3, H, W], normalized as the model "
            "expects",
        ) from error
    return np.array(images)


def _mapped(path: Path) -> np.ndarray:
    """An array in a file: its header may state any shape, which numpy would allocate first."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python, and its texts may mislead
        raise ValueError("not a .npy file") from error


def images_for(model: ModelFile, options: BenchOptions) -> np.ndarray | None:
    """The images to feed a model; those that export kept only if their size fits."""
    if options.images_kept:
        try:
            make_inputs(model, batch=model.fixed_batch() or 1, images=options.images)
        except DeviceError:  # images of another size
            return None
    return options.images


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
        channels, height, width = map(int, parse_json(metadata.get(f"{PREFIX}input_size", "")))
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


def make_probe(
    model: ModelFile,
    *,
    batch: int,
    images: np.ndarray | None,
    most_images: int,
    most_values: int | None = None,
) -> Probe:
    """Inputs of one model at one batch size, and ONNX Runtime's outputs for them on this machine.

    Args:
        images: f32[N, 3, H, W], normalized, of which `most_images` are fed; None feeds the
            fixed-seed tensor.
        most_values: Maximum output values of all calls to compare; None: no limit.
    """
    calls = 1 if images is None else math.ceil(min(most_images, len(images)) / batch)
    shown = [None if images is None else np.roll(images, -n * batch, axis=0) for n in range(calls)]
    made = [make_inputs(model, batch=batch, images=part) for part in shown]
    feeds, inputs, onnx = [one for one, _info in made], made[0][1], model.reference.name
    try:
        session = runtimes.open(model.reference)
        wanted = [
            {name: np.atleast_1d(value) for name, value in session.infer(arrays).items()}
            for arrays in feeds
        ]
    except Exception as error:  # onnxruntime's exceptions share no public base
        reason = reason_of(error.__cause__ or error)[:160]
        return Probe(feeds, inputs, None, onnx, f"ONNX Runtime here cannot run it: {reason}")
    values = sum(array.size for outputs in wanted for array in outputs.values())
    if most_values is not None and values > most_values:
        return Probe(feeds, inputs, None, onnx, "the outputs are too large to be fetched")
    return Probe(feeds, inputs, wanted, onnx)


def judge(
    name: str,
    probe: Probe,
    got: Sequence[Outputs],
    *,
    bound: str,
    where: str,
    few: bool = False,
    unverified: bool = False,
) -> Verification | str:
    """Compare the outputs of a case, or say why they cannot be compared.

    Args:
        got: The outputs, one entry per call.
        bound: Row of exporters' table of tolerances.
        where: Where ONNX Runtime computed the reference outputs, for the record.
        few: The images are too few for a spread and for ties.
        unverified: Record a disagreement instead of refusing to measure.

    Raises:
        WrongOutputs: They disagree.
    """
    wanted, limits, seen = probe.wanted, TOLERANCES[bound], None
    if wanted is None:
        return probe.reason
    source = probe.inputs[0].source if probe.inputs else "synthetic"
    try:
        seen = verify(
            lambda call: wanted[int(call[0])],
            lambda call: got[int(call[0])],
            np.arange(len(wanted)),
            precision=bound,
            batch_size=1,
            tolerance=_for(source, limits, few=few),
        )
        figures = seen.describe().partition(": ")[2]
    except (ExportError, ValueError, LookupError) as error:  # an output or a call is missing
        figures = f"the outputs cannot be compared ({error})"
    passed = seen is not None and seen.passed
    if not passed and not unverified:
        raise WrongOutputs(
            f"{name}: its outputs differ from those of '{probe.onnx}': {figures}",
            hint="do not deploy it; export it again, try another precision, or measure it anyway "
            "with --unverified",
        )
    return Verification(
        images=len(probe.feeds) * (probe.inputs[0].shape[0] if probe.inputs else 1),
        source=source,
        reference=f"onnxruntime {version_of('onnxruntime')} {where}",
        bound=bound,
        most_relative_error=limits.relative,
        least_cosine=limits.cosine,
        relative_error=_finite(seen.relative_error) if seen else None,
        cosine=_finite(seen.cosine) if seen else None,
        top1=seen.top1_agreement if seen else None,
        passed=passed,
    )


def loosest(*precisions: str) -> str:
    """The row of exporters' table for these storage and compute precisions."""
    return max((_ROW_OF.get(one, one) for one in precisions), key=_ROWS.index)


def _for(source: str, limits: Tolerance, *, few: bool) -> Tolerance:
    if few:
        return replace(limits, noise=None, worst=None, tie=0.0)
    if source == "synthetic":  # noise has no class: every decision is a tie
        return replace(limits, noise=None, worst=None, top1=0.0, iou=0.0)
    return limits


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and np.isfinite(figure) else None
