"""Verify that a converted network gives the same outputs on the same real images.

`verify` compares any two runners; `verify_onnx`, `verify_engine` and `export_and_verify` apply it.
A network over its tolerance is renamed `<name>.failed-verification.<suffix>`, and the error names
the first layer that differs (`exporters.locate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import runtimes
from ._trt_compat import gpu_name
from .agreement import Comparison, OutputAgreement
from .atomic_files import SET_ASIDE, set_aside, until_proven
from .errors import ExportError, VerificationFailed
from .onnx_info import onnx_info
from .runtimes import Runner
from .sidecar import read_sidecar
from .tolerances import TOLERANCES, Tolerance

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
    "verify_engine",
    "verify_onnx",
]


@dataclass(frozen=True)
class Verification:
    """Agreement over all outputs: the worst of each figure, and the figures of each output."""

    precision: str
    images: int
    tolerance: Tolerance
    outputs: tuple[OutputAgreement, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.passed for output in self.outputs)

    @property
    def max_abs_error(self) -> float | None:
        """Largest absolute error of any output; None if none states it."""
        return max(
            (o.max_abs_error for o in self.outputs if o.max_abs_error is not None), default=None
        )

    @property
    def relative_error(self) -> float | None:
        """Largest error relative to the largest value of its output."""
        return max(
            (o.relative_error for o in self.outputs if o.relative_error is not None), default=None
        )

    @property
    def cosine(self) -> float | None:
        """Least cosine of an image's outputs."""
        return min((o.cosine for o in self.outputs if o.cosine is not None), default=None)

    @property
    def top1_agreement(self) -> float | None:
        """Share of images (pixels, confident anchors) with the same best class."""
        return min((o.top1 for o in self.outputs if o.top1 is not None), default=None)

    @property
    def kept(self) -> float | None:
        """Like `top1_agreement`, near ties not counted as changes."""
        return min((o.kept for o in self.outputs if o.kept is not None), default=None)

    @property
    def noise(self) -> float | None:
        """Root mean square error relative to the spread of the output."""
        return max((o.noise for o in self.outputs if o.noise is not None), default=None)

    @property
    def worst(self) -> float | None:
        """The `noise` of the worst image."""
        return max((o.worst for o in self.outputs if o.worst is not None), default=None)

    @property
    def shift(self) -> float | None:
        """Error common to all images, relative to the spread of the output."""
        return max((o.shift for o in self.outputs if o.shift is not None), default=None)

    @property
    def iou(self) -> float | None:
        """Least IoU of the classes of label maps."""
        return min((o.iou for o in self.outputs if o.iou is not None), default=None)

    @property
    def worst_image(self) -> int:
        """Index of the image with the largest error."""
        return max(self.outputs, key=lambda output: output.relative_error or 0.0).worst_image

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            **asdict(self),
            "passed": self.passed,
            "max_abs_error": self.max_abs_error,
            "relative_error": self.relative_error,
            "cosine": self.cosine,
            "top1_agreement": self.top1_agreement,
            "kept": self.kept,
            "noise": self.noise,
            "worst": self.worst,
            "shift": self.shift,
            "iou": self.iou,
        }

    def describe(self) -> str:
        """One line for people: the figures, each with its bound."""
        bound, parts = self.tolerance, []
        if self.max_abs_error is not None:
            parts.append(f"max error {self.max_abs_error:.2e}")
        if self.relative_error is not None:
            at_most = f" (at most {bound.relative:g})" if bound.relative is not None else ""
            parts.append(f"relative {self.relative_error:.2e}{at_most}")
        if self.noise is not None and bound.noise is not None:
            parts.append(f"error {self.noise:.3f} of the spread (at most {bound.noise:g})")
            if bound.worst is not None:
                parts.append(f"in the worst image {self.worst:.3f} (at most {bound.worst:g})")
            if bound.shift is not None:
                parts.append(f"in all images alike {self.shift:.3f} (at most {bound.shift:g})")
        elif self.cosine is not None:
            parts.append(f"cosine {self.cosine:.6f} (at least {bound.cosine:g})")
        if self.kept is not None:
            parts.append(f"same class {self.kept:.1%} (at least {bound.top1:.1%})")
        if self.iou is not None:
            parts.append(f"IoU {self.iou:.3f} (at least {bound.iou:g})")
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
    """Run the same images through both networks and compare.

    Args:
        reference: The original network.
        candidate: The converted network.
        images: f32[N, 3, H, W], real and preprocessed as in deployment.
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
    comparison = Comparison()
    for start in range(0, len(images), batch_size):
        batch = np.ascontiguousarray(images[start : start + batch_size], dtype=np.float32)
        comparison.add(reference(batch), candidate(batch))
    return Verification(precision, len(images), bound, comparison.agreements(bound))


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
        wanted = runtimes.open(reference)
    else:
        names = [tensor.name for tensor in onnx_info(onnx_path).outputs]
        wanted = runtimes.open(reference, names=names)
    return verify(
        wanted.run,
        runtimes.open(onnx_path).run,
        images,
        precision=precision,
        batch_size=batch_size,
        tolerance=tolerance,
    )


def verify_engine(
    onnx_path: str | Path, path: str | Path, images: np.ndarray
) -> Verification | None:
    """Run the same images through an engine and its ONNX file: an engine can be wrong too.

    Args:
        onnx_path: The file the engine was built from.
        path: The engine, built by the caller; set aside when it disagrees.
        images: What the network takes, [N, ...].

    Returns:
        The comparison, or None where there is no GPU or the engine was not built for it.

    Raises:
        VerificationFailed: The engine's outputs differ.
    """
    sidecar, here = read_sidecar(path), gpu_name()
    if here is None or not (sidecar.gpu or any(f"SM {t})" in here for t in sidecar.targets)):
        return None
    verification = verify(
        runtimes.open(onnx_path).run,
        runtimes.open(path, made_from=onnx_path, trust_engine=True).run,
        images,
        precision=sidecar.precision,
    )
    require(verification, path)
    return verification


def require(
    verification: Verification,
    path: str | Path,
    *,
    reference: nn.Module | str | Path | None = None,
    images: np.ndarray | None = None,
) -> None:
    """Return silently, or set the converted file aside and report where it differs.

    Args:
        verification: The comparison's outcome.
        path: The converted file; renamed when the comparison failed.
        reference: PyTorch model or ONNX file; with `images`, used to find the first differing layer
            (in ONNX files and OpenVINO's .xml).
        images: The same f32[N, 3, H, W]; the search looks at the one with the largest error.

    Raises:
        VerificationFailed: The comparison failed.
    """
    if verification.passed:
        return
    where = ""
    if reference is not None and images is not None and Path(path).suffix in (".onnx", ".xml"):
        from .locate import first_departing_layer

        worst = verification.worst_image
        departure = first_departing_layer(
            reference, path, images[worst : worst + 1], precision=verification.precision
        )
        if departure:
            where = f"; the first layer that differs is {departure.describe()}"
    aside = set_aside(path, SET_ASIDE)
    int8 = verification.precision == "int8"
    raise VerificationFailed(
        f"'{Path(path).name}' does not agree with its original: {verification.describe()}{where}",
        hint=f"the file was kept as '{aside}' for inspection; do not deploy it"
        + ("; --max-drop keeps the worst layers in float" if int8 else ""),
    )


def export_and_verify(
    model: nn.Module,
    path: str | Path,
    images: np.ndarray,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[OnnxExport, Verification]:
    """Export a model to ONNX and prove it on real images f32[N, 3, H, W].

    Raises:
        ExportError: See `export_onnx` and `verify`; a file that fails is set aside.
    """
    from .onnx_export import export_onnx

    channels, height, width = images.shape[1:]
    with until_proven(path) as lent:
        exported = export_onnx(
            model,
            lent,
            input_size=(channels, height, width),
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            output_names=output_names,
            metadata=metadata,
        )
        verification = verify_onnx(model, lent, images)
        require(verification, lent, reference=model, images=images)
    return replace(exported, path=Path(path)), verification
