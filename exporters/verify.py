"""Proof that a converted network still gives the same answers: same real images, both sides.

`verify` compares any two runners; `verify_onnx` and `export_and_verify` are it for PyTorch -> ONNX.
A network over its tolerance is renamed `<name>.failed-verification.<suffix>`, and the error names
the first layer that departs (`exporters.locate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ExportError, VerificationFailed
from .files import set_aside
from .onnx_info import onnx_info
from .runners import Outputs, Runner, onnx_runner, torch_runner

if TYPE_CHECKING:
    from torch import nn

    from .onnx_export import OnnxExport

__all__ = [
    "TOLERANCES",
    "OutputAgreement",
    "Tolerance",
    "Verification",
    "export_and_verify",
    "require",
    "verify",
    "verify_onnx",
]

SET_ASIDE = "failed-verification"
_CLASS_SCORES = ("logits", "probabilities")


@dataclass(frozen=True)
class Tolerance:
    """What a conversion may lose; None leaves a figure unjudged.

    Args:
        relative: Largest error, as a part of the largest reference value.
        cosine: Lowest cosine similarity between an image's outputs on the two sides.
        top1: Lowest share of images that keep their best class.
    """

    relative: float | None
    cosine: float
    top1: float


# fp32 differs by rounding alone. Half precision has 11 bits, and errors add up over depth. INT8
# spreads its error unevenly, so a single worst value says little; direction and decisions count.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(relative=1e-4, cosine=0.99999, top1=0.99),
    "fp16": Tolerance(relative=3e-2, cosine=0.999, top1=0.98),
    "int8": Tolerance(relative=None, cosine=0.97, top1=0.95),
}


@dataclass(frozen=True)
class OutputAgreement:
    """How well one output agrees.

    `top1` is None unless the output holds class scores; `worst_image` is the index of the image
    with the largest error.
    """

    name: str
    max_abs_error: float
    relative_error: float
    rms_error: float
    cosine: float
    top1: float | None
    worst_image: int
    passed: bool


@dataclass(frozen=True)
class Verification:
    """Agreement over all outputs: the worst of each figure, and each output by itself."""

    precision: str
    images: int
    tolerance: Tolerance
    outputs: tuple[OutputAgreement, ...]

    @property
    def passed(self) -> bool:
        return all(output.passed for output in self.outputs)

    @property
    def max_abs_error(self) -> float:
        return max(output.max_abs_error for output in self.outputs)

    @property
    def relative_error(self) -> float:
        return max(output.relative_error for output in self.outputs)

    @property
    def cosine(self) -> float:
        return min(output.cosine for output in self.outputs)

    @property
    def top1_agreement(self) -> float | None:
        rates = [output.top1 for output in self.outputs if output.top1 is not None]
        return min(rates) if rates else None

    @property
    def worst_image(self) -> int:
        return max(self.outputs, key=lambda output: output.relative_error).worst_image

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "passed": self.passed,
            "max_abs_error": self.max_abs_error,
            "relative_error": self.relative_error,
            "cosine": self.cosine,
            "top1_agreement": self.top1_agreement,
        }

    def describe(self) -> str:
        """One line for people: the figures, and the bounds they were held against."""
        bound = self.tolerance
        parts = [
            f"max error {self.max_abs_error:.2e}",
            f"relative {self.relative_error:.2e}"
            + (f" (at most {bound.relative:g})" if bound.relative is not None else ""),
            f"cosine {self.cosine:.6f} (at least {bound.cosine:g})",
        ]
        if self.top1_agreement is not None:
            parts.append(f"same class {self.top1_agreement:.1%} (at least {bound.top1:.1%})")
        return f"{self.precision}, {self.images} images: " + ", ".join(parts)


def verify(
    reference: Runner,
    candidate: Runner,
    images: np.ndarray,
    *,
    precision: str = "fp32",
    batch_size: int = 16,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Run the same images through both sides and compare.

    Args:
        reference: The network as it was.
        candidate: The network as converted.
        images: f32[N, 3, H, W], real and preprocessed as in use.
        precision: `fp32`, `fp16` or `int8`; chooses the tolerance.
        batch_size: Images per call.
        tolerance: Overrides the precision's tolerance.

    Raises:
        ExportError: No images, an unknown precision, or a reference that is not finite.
        VerificationFailed: The two sides do not even have the same outputs.
    """
    if precision not in TOLERANCES:
        known = ", ".join(TOLERANCES)
        raise ExportError(f"unknown precision '{precision}'", hint=f"one of {known}")
    if len(images) == 0:
        raise ExportError("no images to verify with", hint="give at least a few real images")
    bound = tolerance or TOLERANCES[precision]
    sums: dict[str, _Sums] = {}
    for start in range(0, len(images), batch_size):
        batch = np.ascontiguousarray(images[start : start + batch_size], dtype=np.float32)
        wanted, got = reference(batch), candidate(batch)
        _require_same_outputs(wanted, got)
        for name, values in wanted.items():
            sums.setdefault(name, _Sums(name)).add(values, got[name])
    outputs = tuple(entry.agreement(bound) for entry in sums.values())
    return Verification(precision, len(images), bound, outputs)


def verify_onnx(
    reference: nn.Module | str | Path,
    onnx_path: str | Path,
    images: np.ndarray,
    *,
    precision: str = "fp32",
    batch_size: int = 16,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Compare an ONNX file with the PyTorch model it came from, or with another ONNX file.

    See `verify` for the arguments and errors.
    """
    if isinstance(reference, (str, Path)):
        wanted = onnx_runner(reference)
    else:
        wanted = torch_runner(reference, [tensor.name for tensor in onnx_info(onnx_path).outputs])
    return verify(
        wanted,
        onnx_runner(onnx_path),
        images,
        precision=precision,
        batch_size=batch_size,
        tolerance=tolerance,
    )


def require(
    verification: Verification,
    path: str | Path,
    *,
    reference: nn.Module | str | Path | None = None,
    images: np.ndarray | None = None,
) -> None:
    """Pass silently, or put the converted file aside and say where it went wrong.

    Args:
        verification: The comparison's outcome.
        path: The converted file; renamed when the comparison failed.
        reference: PyTorch model or ONNX file; with `images`, used to find the departing layer
            (for ONNX files only).
        images: The same f32[N, 3, H, W]; the search looks at the one with the largest error.

    Raises:
        VerificationFailed: The comparison failed.
    """
    if verification.passed:
        return
    where = ""
    if reference is not None and images is not None and Path(path).suffix == ".onnx":
        from .locate import first_departing_layer

        worst = verification.worst_image
        departure = first_departing_layer(
            reference, path, images[worst : worst + 1], precision=verification.precision
        )
        if departure:
            where = f"; the first layer that departs is {departure.describe()}"
    aside = set_aside(path, SET_ASIDE)
    raise VerificationFailed(
        f"'{Path(path).name}' does not agree with its original: {verification.describe()}{where}",
        hint=f"the file was kept as '{aside}' for inspection; do not deploy it",
    )


def export_and_verify(
    model: nn.Module,
    path: str | Path,
    images: np.ndarray,
    *,
    dynamic_batch: bool = True,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[OnnxExport, Verification]:
    """Export a model to ONNX and prove it on real images f32[N, 3, H, W].

    Raises:
        ExportError: See `export_onnx` and `verify`; a file that fails is put aside.
    """
    from .onnx_export import export_onnx

    channels, height, width = images.shape[1:]
    exported = export_onnx(
        model,
        path,
        input_size=(channels, height, width),
        dynamic_batch=dynamic_batch,
        output_names=output_names,
        metadata=metadata,
    )
    batch_size = 16 if dynamic_batch else 1
    verification = verify_onnx(model, path, images, batch_size=batch_size)
    require(verification, path, reference=model, images=images)
    return exported, verification


class _Sums:
    """Running figures of one output over batches, so that feature maps need not be kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.largest_error = self.largest_value = 0.0
        self.squared_error = self.squared_value = 0.0
        self.cosine = 1.0
        self.same_class = self.images = self.worst_image = 0
        self.has_classes = False

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        if wanted.shape != got.shape:
            raise VerificationFailed(
                f"output '{self.name}' has shape {got.shape}, the original's is {wanted.shape}"
            )
        if not np.isfinite(wanted).all():
            raise ExportError(
                f"the original gives non-finite values at output '{self.name}'",
                hint="check the model and the images before exporting it",
            )
        # A non-finite candidate is an infinite error, never one that comparisons overlook.
        error = np.where(np.isfinite(got), np.abs(got.astype(np.float64) - wanted), np.inf)
        worst = error.reshape(len(error), -1).max(axis=1, initial=0.0)  # [B]
        if worst.max() > self.largest_error:
            self.largest_error = float(worst.max())
            self.worst_image = self.images + int(worst.argmax())
        self.largest_value = max(self.largest_value, float(np.abs(wanted).max(initial=0.0)))
        self.squared_error += float(np.square(error).sum())
        self.squared_value += float(np.square(wanted.astype(np.float64)).sum())
        self.cosine = min(self.cosine, _lowest_cosine(wanted, got))
        self.images += len(wanted)
        self.has_classes = self.name in _CLASS_SCORES and wanted.ndim == 2
        if self.has_classes:
            self.same_class += int((wanted.argmax(1) == got.argmax(1)).sum())

    def agreement(self, bound: Tolerance) -> OutputAgreement:
        relative = self.largest_error / max(self.largest_value, 1e-12)
        top1 = self.same_class / self.images if self.has_classes else None
        passed = (
            np.isfinite(self.largest_error)
            and (bound.relative is None or relative <= bound.relative)
            and self.cosine >= bound.cosine
            and (top1 is None or top1 >= bound.top1)
        )
        return OutputAgreement(
            name=self.name,
            max_abs_error=self.largest_error,
            relative_error=relative,
            rms_error=(self.squared_error / max(self.squared_value, 1e-24)) ** 0.5,
            cosine=self.cosine,
            top1=top1,
            worst_image=self.worst_image,
            passed=bool(passed),
        )


def _lowest_cosine(wanted: np.ndarray, got: np.ndarray) -> float:
    a = wanted.reshape(len(wanted), -1).astype(np.float64)
    b = np.nan_to_num(got.reshape(len(got), -1).astype(np.float64), posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30))
    return float(cosines.min(initial=1.0))


def _require_same_outputs(wanted: Outputs, got: Outputs) -> None:
    if wanted.keys() != got.keys():
        raise VerificationFailed(
            f"the converted network's outputs are {sorted(got)}, the original's {sorted(wanted)}"
        )
