"""The files of an export, in order: what each is made from, how, and how it is proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from exporters import runtimes, trt_build, verify
from exporters.bake import Preprocessing, Suppression, bake
from exporters.fp16 import convert_fp16
from exporters.onnx_export import export_onnx
from exporters.onnx_info import exposed, read_onnx
from exporters.openvino_export import export_openvino
from exporters.runtimes import Outputs
from exporters.sidecar import remember_engine
from exporters.verify import Verification
from hgkd_edge.console import track_steps
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.export_int8 import Int8Files
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_record import ExportRecord
from hgkd_edge.exportable import Exportable
from hgkd_edge.files import cache_dir, engines_dir, file_sha256
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.answers import decide
from hgkd_edge.tasks.metadata import ModelMetadata
from hgkd_edge.tasks.suppression import SUPPRESSION

__all__ = ["POSTPROCESSING", "VERIFICATION_PHOTOS", "Artifact", "Exported", "Plan"]

VERIFICATION_PHOTOS = 64
POSTPROCESSING: dict[str, str | Suppression] = {
    "classify": "softmax",
    "multilabel": "sigmoid",
    "segment": "argmax",
    "detect": SUPPRESSION,
}


class Exported(Protocol):
    """What an exporter reports of the file that it wrote."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields, `path` among them, as `export.json` records them."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A file to make.

    Attributes:
        path: Its place once it is proven.
        kind: `onnx`, `openvino` or `engine`.
        precision: `fp32`, `fp16` or `int8`.
        source: The file it is made from.
        make: Writes it to the given path.
        prove: Compares the file at the given path with its source. Raises VerificationFailed where
            they differ; None: it does not run on this machine.
    """

    path: Path
    kind: str
    precision: str
    source: Path
    make: Callable[[Path], Exported]
    prove: Callable[[Path], Verification | None]


class Plan:
    """What one export makes.

    Args:
        run: The run.
        options: What to export.
        subject: The run's network and images.
        record: Where INT8 records its calibration and the damage of layers.
    """

    def __init__(
        self, run: RunDir, options: ExportOptions, subject: Exportable, record: ExportRecord
    ) -> None:
        self.run, self.options, self.subject = run, options, subject
        self.images = subject.images(subject.unseen, VERIFICATION_PHOTOS)
        self.fp32 = self.path("fp32.onnx")
        self._int8 = Int8Files(self.fp32, subject, options, self.images, record)

    def artifacts(self) -> list[Artifact]:
        """Every file, sources before the files that are made from them; the fp32 file first."""
        options, precision = self.options, self.options.precision
        made = [self._fp32()]
        if precision == "fp16":
            made.append(self._fp16())
        elif precision == "int8":
            made += [self._quantized(flavor) for flavor in options.made_flavors()]
        if self._is_baking:
            wanted = [one for one in made if one.precision == precision]
            if options.openvino and precision == "fp16":
                wanted.insert(0, made[0])  # OpenVINO halves the weights itself
            made += [self._baked(plain) for plain in wanted]
        if options.openvino:
            made.append(self._openvino())
        if options.trt:
            made.append(self._engine())
        return made

    def path(self, ending: str) -> Path:
        """Where a file goes: `export/NAME.ENDING`."""
        both = self.options.backbone and self.run.model_file.is_file()
        name = self.run.path.resolve().name + (".backbone" if both else "")
        return self.run.export_dir / f"{name}.{ending}"

    def plain(self, flavor: str) -> Path:
        """The ONNX file of the precision asked for, without processing inside."""
        precision = self.options.precision
        return self.path(f"int8-{flavor}.onnx" if precision == "int8" else f"{precision}.onnx")

    def deployed(self, plain: Path) -> Path:
        """The same file with the processing asked for inside."""
        return plain.with_name(f"{plain.stem}.baked.onnx") if self._is_baking else plain

    @property
    def _is_baking(self) -> bool:
        return self.options.bake_preprocessing or self.options.bake_postprocessing

    @cached_property
    def _deployed_images(self) -> np.ndarray:
        """What a deployed file takes: images as the network sees them, or frames."""
        if self.options.bake_preprocessing:
            return self.subject.frames(VERIFICATION_PHOTOS, self.options.frame)
        return self.images

    def _fp32(self) -> Artifact:
        subject, options = self.subject, self.options

        def make(path: Path) -> Exported:
            _, channels, height, width = self.images.shape
            return export_onnx(
                subject.network,
                path,
                input_size=(channels, height, width),
                dynamic_batch=options.dynamic_batch,
                dynamic_size=options.dynamic_size,
                output_names=subject.output_names,
                metadata=_metadata(self.run, subject),
            )

        def prove(path: Path) -> Verification:
            return _proven(subject.network, path, self.images, "fp32")

        return Artifact(self.fp32, "onnx", "fp32", subject.weights, make, prove)

    def _fp16(self) -> Artifact:
        def make(path: Path) -> Exported:
            return convert_fp16(self.fp32, path, images=self.images)

        def prove(path: Path) -> Verification:
            return _proven(self.fp32, path, self.images, "fp16")

        return Artifact(self.path("fp16.onnx"), "onnx", "fp16", self.fp32, make, prove)

    def _quantized(self, flavor: str) -> Artifact:
        def make(path: Path) -> Exported:
            return self._int8.make(path, flavor)

        def prove(path: Path) -> Verification:
            return _proven(self._int8.reference, path, self.images, "int8")

        return Artifact(self.plain(flavor), "onnx", "int8", self.fp32, make, prove)

    def _baked(self, plain: Artifact) -> Artifact:
        """A copy with processing inside, compared with the same processing outside."""
        options, subject = self.options, self.subject

        def make(path: Path) -> Exported:
            before, taken = None, subject.input
            if options.bake_preprocessing:
                before = Preprocessing(
                    mean=taken.mean, std=taken.std, geometry=taken.geometry, frame=options.frame
                )
            after = POSTPROCESSING[subject.task] if options.bake_postprocessing else None
            return bake(plain.path, path, preprocessing=before, postprocessing=after, prefix=PREFIX)

        def prove(path: Path) -> Verification:
            return self._prove_baked(plain, path)

        path = self.deployed(plain.path)
        return Artifact(path, "onnx", plain.precision, plain.path, make, prove)

    def _prove_baked(self, plain: Artifact, baked: Path) -> Verification:
        """Compare the file's decisions, and the outputs of the network inside."""
        network, subject, options = runtimes.open(plain.path), self.subject, self.options

        def outside(images: np.ndarray) -> Outputs:
            if options.bake_preprocessing:
                images = subject.prepared(images.astype(np.uint8))
            outputs = network.run(images)
            decided = decide(subject.task, outputs) if options.bake_postprocessing else {}
            return {**outputs, **decided}

        # Resized pixels differ by up to one gray level, as if quantized.
        precision = "int8" if options.bake_preprocessing else plain.precision
        inside = runtimes.open(exposed(read_onnx(baked), subject.output_names).SerializeToString())
        proof = verify.verify(outside, inside.run, self._deployed_images, precision=precision)
        verify.require(proof, baked)
        return proof

    def _openvino(self) -> Artifact:
        precision = self.options.precision
        plain = self.plain("cpu") if precision == "int8" else self.fp32
        source = self.deployed(plain)

        def make(path: Path) -> Exported:
            return export_openvino(source, path, half_weights=precision == "fp16")

        def prove(path: Path) -> Verification:
            images = self._deployed_images
            proof = verify.verify(
                runtimes.open(source).run, runtimes.open(path).run, images, precision=precision
            )
            verify.require(proof, path, reference=source, images=images)
            return proof

        return Artifact(self.path(f"{precision}.xml"), "openvino", precision, source, make, prove)

    def _engine(self) -> Artifact:
        options, source = self.options, self.deployed(self.plain("tensorrt"))

        def make(path: Path) -> Exported:
            # Phases of a TensorRT build nest and their number is unknown, so steps are shown as
            # they arrive.
            with track_steps("building the engine", total=1) as show:
                build = trt_build.build_engine(
                    source,
                    path,
                    opt_batch=options.opt_batch or 1,
                    max_batch=options.max_batch or max(16, options.opt_batch or 1),
                    workspace_mib=options.workspace_mib,
                    cache_dir=cache_dir() / "timing",
                    compute_capabilities=options.targets,
                    dla=options.dla,
                    progress=lambda phase, step, steps: show(0, f"{phase} {step}/{steps}"),
                )
                show(1, "")
            remember_engine(build.path, engines_dir())
            return build

        def prove(path: Path) -> Verification | None:
            return verify.verify_engine(source, path, self._deployed_images)

        path = source.with_suffix(".plan")
        return Artifact(path, "engine", options.precision, source, make, prove)


def _proven(
    reference: nn.Module | Path, path: Path, images: np.ndarray, precision: str
) -> Verification:
    proof = verify.verify_onnx(reference, path, images, precision=precision)
    verify.require(proof, path, reference=reference, images=images)
    return proof


def _metadata(run: RunDir, subject: Exportable) -> dict[str, str]:
    described = ModelMetadata(subject.task, subject.classes, subject.input, subject.threshold)
    digest = file_sha256(subject.weights)
    return described.entries(
        weights_sha256=digest, model=subject.spec.name, run=run.path.resolve().name
    )
