"""Export a run: weights -> verified ONNX -> fp16, INT8 -> OpenVINO, TensorRT. `exporters` does it.

Every file is made from the fp32 ONNX file, which is made from the weights. Each file is compared on
held-out images with the file it was made from, before it gets its final name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporters import (
    ConversionFailed,
    ExportError,
    MissingPackageError,
    UserError,
    VerificationFailed,
    quantize,
    runtimes,
    sensitivity,
    trt_build,
    verify,
)
from exporters.bake import Preprocessing, Suppression, bake
from exporters.calibrate import Calibration, calibrate
from exporters.files import until_proven
from exporters.fp16 import convert_fp16
from exporters.network_files import network_files
from exporters.onnx_info import exposed, read_onnx
from exporters.openvino_export import export_openvino
from exporters.runtimes import Outputs, Runner
from exporters.sidecar import remember_engine
from hgkd_edge.bundles import BundleSource, flavor_of, make_bundle, require_bundle
from hgkd_edge.console import console, track_steps
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_record import write_exports
from hgkd_edge.exportable import EMBED, Exportable, load_exportable, photos_in
from hgkd_edge.files import engines_dir
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.rundir import RunDir, atomic_write, cache_dir, file_sha256
from hgkd_edge.tasks.answers import decide
from hgkd_edge.tasks.suppression import SUPPRESSION

__all__ = ["ExportIncomplete", "export_run", "verification_images"]

VERIFICATION_PHOTOS = 64
CALIBRATION_PHOTOS = 512
RANKING_PHOTOS = 32
BENCH_PHOTOS = 16
_PATHS = ("path", "weights", "sidecar")  # of an entry, if it has them
POSTPROCESSING: dict[str, str | Suppression] = {
    "classify": "softmax",
    "segment": "argmax",
    "detect": SUPPRESSION,
}


class ExportIncomplete(VerificationFailed):
    """Some files failed; files that do not depend on them were made.

    Args:
        result: As `export_run` returns it; `failed` lists the files that failed.
        failures: Their errors, in the order of `failed`.
    """

    def __init__(self, result: dict[str, Any], failures: list[UserError]) -> None:
        hints = dict.fromkeys(error.hint for error in failures if error.hint)
        super().__init__("; ".join(error.message for error in failures), hint="; ".join(hints))
        self.exit_code = max(error.exit_code for error in failures)
        self.result, self.failures = result, failures


def export_run(run: RunDir, options: ExportOptions | None = None) -> dict[str, Any]:
    """Export a run's model, verify every file on held-out images, and record the files.

    Args:
        run: Its `model.safetensors` is exported, or `backbone.safetensors` where there is none.
        options: What to export; by default only the fp32 ONNX.

    Returns:
        `files` lists every file with its verification; `onnx` and `verification` are the fp32
        file's. Also written to the run's `export.json`, after every file.

    Raises:
        RunError: The run has no weights yet.
        DataError: Its images, or the calibration images, cannot be read.
        ExportError: Options that cannot work, or the fp32 file failed, which all others need.
        ExportIncomplete: Other files failed, or a runtime is not installed.
    """
    options = options or ExportOptions()
    options.check()
    subject = load_exportable(run, backbone=options.backbone)
    if options.bake_postprocessing and subject.task not in POSTPROCESSING:
        raise ExportError(
            "--bake-postprocessing: a bare backbone gives an embedding, nothing to process",
            hint="fine-tune the run first, or remove the option",
        )
    for name in options.bundles:
        require_bundle(name, subject)
    work = _Work(run, options, subject)
    work.make_fp32()
    if options.precision == "fp16":
        with work.separately("fp16.onnx"):
            work.make_fp16()
    elif options.precision == "int8":
        work.make_int8()
    work.bake_all()
    if options.openvino:
        with work.separately(f"{options.precision}.xml"):
            work.make_openvino()
    if options.trt:
        with work.separately("plan"):
            work.make_engine()
    for name in dict.fromkeys(options.bundles):
        with work.separately(name):
            work.make_bundle(name)
    if work.failures:
        raise ExportIncomplete(work.result, work.failures)
    return work.result


def verification_images(run: RunDir, spec: BackboneSpec) -> np.ndarray:
    """Images as a run's backbone sees them, float32 [N, 3, H, W]; held-out ones if any."""
    subject = load_exportable(run, backbone=True)
    return subject.images(subject.unseen, VERIFICATION_PHOTOS)


@dataclass
class _Work:
    """One export in progress: the options, and the files made so far."""

    run: RunDir
    options: ExportOptions
    subject: Exportable
    result: dict[str, Any] = field(default_factory=dict)
    fp32: Path = Path()
    wanted: dict[str, Path] = field(default_factory=dict)  # of this precision, by INT8 flavor or ""
    baked: dict[Path, Path] = field(default_factory=dict)  # plain -> with processing inside
    failures: list[UserError] = field(default_factory=list)

    def __post_init__(self) -> None:
        subject, options = self.subject, self.options
        self.images = subject.images(subject.unseen, VERIFICATION_PHOTOS)
        self.result = {
            "run": str(self.run.path),
            "task": subject.task,
            "weights": subject.weights.name,
            "precision": options.precision,
            "options": options.to_dict(),
            "verified_on": {"split": subject.unseen, "photos": len(self.images)},
            "files": [],
            "failed": [],
        }

    @contextmanager
    def separately(self, ending: str) -> Iterator[None]:
        """A file that fails here is recorded, and does not stop files that do not need it."""
        try:
            yield
        except (VerificationFailed, ConversionFailed, MissingPackageError) as error:
            self.failures.append(error)
            self.result["failed"].append(
                {"file": self._path(ending).name, "reason": error.message, "hint": error.hint}
            )
            self._save()

    def make_fp32(self) -> None:
        options, subject = self.options, self.subject
        self.fp32 = self._path("fp32.onnx")
        exported, verification = verify.export_and_verify(
            subject.network,
            self.fp32,
            self.images,
            dynamic_batch=options.dynamic_batch,
            dynamic_size=options.dynamic_size,
            output_names=subject.output_names,
            metadata=_metadata(self.run, subject),
        )
        self.wanted = {"": self.fp32}
        self.result |= {"onnx": exported.to_dict(), "verification": verification.to_dict()}
        self._record("onnx", "fp32", exported.to_dict(), subject.weights, verification)
        self._keep_images()

    def make_fp16(self) -> None:
        path = self._path("fp16.onnx")
        self.wanted = {}
        with until_proven(path) as lent:
            half = convert_fp16(self.fp32, lent, images=self.images)
            verification = self._prove(lent, "fp16")
        self._record("onnx", "fp16", half.to_dict(), self.fp32, verification)
        self.wanted = {"": path}

    def make_int8(self) -> None:
        calibration = self._calibrate()
        flavors = self.options.made_flavors()
        self.wanted = {}
        for flavor in flavors:
            with self.separately(f"int8-{flavor}.onnx"):
                path = self._path(f"int8-{flavor}.onnx")
                with until_proven(path) as lent:
                    bounded = self._quantize(lent, calibration, flavor)
                    verification = self._prove(lent, "int8")
                self._record("onnx", "int8", bounded, self.fp32, verification)
                self.wanted[flavor] = path

    def bake_all(self) -> None:
        """Write processing into the files to deploy."""
        if not (self.options.bake_preprocessing or self.options.bake_postprocessing):
            return
        plain = [*self.wanted.values()]
        if self.options.openvino and self.options.precision == "fp16":
            plain.append(self.fp32)  # OpenVINO halves the weights itself
        for path in plain:
            self.baked[path] = self._bake(path)

    def make_openvino(self) -> None:
        precision = self.options.precision
        plain = self._source("cpu") if precision == "int8" else self.fp32
        source = self.baked.get(plain, plain)
        path = self._path("int8.xml" if precision == "int8" else f"{precision}.xml")
        images = self.images
        if self.options.bake_preprocessing:
            images = self.subject.frames(VERIFICATION_PHOTOS, self.options.frame)
        with until_proven(path) as lent:
            written = export_openvino(source, lent, half_weights=precision == "fp16")
            verification = verify.verify(
                runtimes.open(source).run, runtimes.open(lent).run, images, precision=precision
            )
            verify.require(verification, lent, reference=source, images=images)
        self._record("openvino", precision, written.to_dict(), source, verification)

    def make_engine(self) -> None:
        options = self.options
        plain = self._source("tensorrt" if options.precision == "int8" else "")
        source = self.baked.get(plain, plain)
        images = self.images
        if options.bake_preprocessing:
            images = self.subject.frames(VERIFICATION_PHOTOS, options.frame)
        with until_proven(source.with_suffix(".plan")) as lent:
            build = self._build_engine(source, lent)
            remember_engine(build.path, engines_dir())
            verification = verify.verify_engine(source, build.path, images)
        entry = self._record("engine", options.precision, build.to_dict(), source, verification)
        self.result["engine"] = {key: entry[key] for key in build.to_dict()}
        self._save()

    def make_bundle(self, name: str) -> None:
        options = self.options
        int8 = options.precision == "int8"
        plain = self._source(flavor_of(name, options.made_flavors()) if int8 else "")
        source = BundleSource(
            run=self.run,
            subject=self.subject,
            plain=plain,
            baked=self.baked.get(plain, plain),
            precision=options.precision,
            options=options,
        )
        folder = self.run.export_dir / name
        made = make_bundle(name, source, folder)
        for file in made["files"]:
            made_from = self.run.export_dir / made["made_from"]
            self.run.add_artifact(folder / file, made_from=[made_from])
        self.result.setdefault("bundles", []).append(made)
        self._save()

    def _build_engine(self, source: Path, path: Path) -> trt_build.EngineBuild:
        options = self.options
        # Phases of a TensorRT build nest and their number is unknown, so steps are shown as they
        # arrive.
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
        return build

    def _source(self, flavor: str) -> Path:
        """The ONNX file of this precision and flavor.

        Raises:
            ConversionFailed: It failed before.
        """
        if flavor not in self.wanted:
            name = self._path(f"int8-{flavor}.onnx" if flavor else "fp16.onnx").name
            raise ConversionFailed(f"not made, because '{name}' failed, from which it is made")
        return self.wanted[flavor]

    def _calibrate(self) -> Calibration:
        options, subject = self.options, self.subject
        count, method = options.calibration or CALIBRATION_PHOTOS, options.calibration_method
        if options.calibration_data is not None:
            images = photos_in(options.calibration_data, subject, count)
        else:
            images = subject.images("train", count)
        with track_steps("calibrating", total=len(images)) as show:
            calibration = calibrate(
                read_onnx(self.fp32),
                images,
                method=method or "percentile",
                progress=lambda done, total: show(done, "photos"),
            )
        self.result["calibration"] = {
            "method": calibration.method,
            "photos": calibration.images,
            "from": str(options.calibration_data or "train"),
            "learned_inputs": len(subject.input_ranges),
        }
        return calibration.with_inputs(read_onnx(self.fp32), subject.input_ranges)

    def _quantize(self, path: Path, calibration: Calibration, flavor: str) -> dict[str, Any]:
        """Quantize; with `max_drop` or `sensitivity`, rank the layers one by one first."""
        options = self.options
        if options.max_drop is None and not options.sensitivity:
            return self._plain_int8(path, calibration, flavor)
        ranking = self._rank(calibration, flavor)
        if options.max_drop is None:
            return self._plain_int8(path, calibration, flavor)
        bounded = sensitivity.quantize_within(
            self.fp32,
            path,
            calibration=calibration,
            ranking=ranking,
            score=self.subject.score,
            proof=self._int8_proof,
            max_drop=options.max_drop,
            flavor=flavor,
            progress=lambda kept, drop, agrees: console.print(
                f"INT8 ({flavor}): {kept} layers in float lose {drop:.2f} points"
                + ("" if agrees else ", and the outputs do not agree")
            ),
        )
        return {
            **bounded.exported.to_dict(),
            "accuracy": {
                **bounded.to_dict(),
                "metric": self.subject.metric,
                "on": self.subject.scored_on,
            },
        }

    def _int8_proof(self, runner: Runner) -> verify.Verification:
        return verify.verify(runtimes.open(self.fp32).run, runner, self.images, precision="int8")

    def _plain_int8(self, path: Path, calibration: Calibration, flavor: str) -> dict[str, Any]:
        return quantize.quantize_int8(
            self.fp32, path, calibration=calibration, flavor=flavor
        ).to_dict()

    def _rank(self, calibration: Calibration, flavor: str) -> list[sensitivity.LayerDamage]:
        layers = len(quantize.quantizable_nodes(read_onnx(self.fp32)))
        with track_steps(f"ranking layers ({flavor})", total=layers) as show:
            ranking = sensitivity.rank_layers(
                self.fp32,
                calibration,
                self.subject.images("train", RANKING_PHOTOS),
                flavor=flavor,
                progress=lambda done, total: show(done, "layers"),
            )
        self.result.setdefault("sensitivity", {})[flavor] = [
            {"module": layer.module, "damage": layer.damage} for layer in ranking
        ]
        return ranking

    def _bake(self, plain: Path) -> Path:
        """A copy with processing inside, compared with the same processing outside."""
        options, subject = self.options, self.subject
        path = plain.with_name(f"{plain.stem}.baked.onnx")
        precision = "fp32" if plain == self.fp32 else options.precision
        preprocessing = None
        if options.bake_preprocessing:
            taken = subject.input
            preprocessing = Preprocessing(
                mean=taken.mean, std=taken.std, geometry=taken.geometry, frame=options.frame
            )
        post = POSTPROCESSING[subject.task] if options.bake_postprocessing else None
        with until_proven(path) as lent:
            written = bake(
                plain, lent, preprocessing=preprocessing, postprocessing=post, prefix=PREFIX
            )
            verification = self._prove_baked(plain, lent, precision)
        entry = written.to_dict() | {"path": str(path)}
        self._record("onnx", precision, entry, plain, verification)
        return path

    def _prove_baked(self, plain: Path, baked: Path, precision: str) -> verify.Verification:
        """Compare the file's decisions, and the outputs of the network inside."""
        network, subject, options = runtimes.open(plain), self.subject, self.options

        def outside(images: np.ndarray) -> Outputs:
            if options.bake_preprocessing:
                images = subject.prepared(images.astype(np.uint8))
            outputs = network.run(images)
            decided = decide(subject.task, outputs) if options.bake_postprocessing else {}
            return {**outputs, **decided}

        images = self.images
        if options.bake_preprocessing:
            images = subject.frames(VERIFICATION_PHOTOS, options.frame)
            precision = "int8"  # resized pixels differ by up to two levels, as if quantized
        inside = runtimes.open(exposed(read_onnx(baked), subject.output_names).SerializeToString())
        verification = verify.verify(outside, inside.run, images, precision=precision)
        verify.require(verification, baked)
        return verification

    def _prove(self, path: Path, precision: str) -> verify.Verification:
        verification = verify.verify_onnx(self.fp32, path, self.images, precision=precision)
        verify.require(verification, path, reference=self.fp32, images=self.images)
        return verification

    def _keep_images(self) -> None:
        """Save some of the images for `bench`, which verifies on the device before it measures."""
        path = self.run.export_dir / "images.npy"
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, self.images[:BENCH_PHOTOS])
        self.run.add_artifact(path)

    def _path(self, ending: str) -> Path:
        both = self.options.backbone and self.run.model_file.is_file()
        name = self.run.path.resolve().name + (".backbone" if both else "")
        return self.run.export_dir / f"{name}.{ending}"

    def _record(
        self,
        kind: str,
        precision: str,
        entry: dict[str, Any],
        source: Path,
        verification: verify.Verification | None,
    ) -> dict[str, Any]:
        """Record a verified file in export.json and the manifest; returns the entry."""
        proof = None if verification is None else verification.to_dict()
        about = {"kind": kind, "precision": precision, "made_from": source.name}
        about |= {key: self.result[key] for key in ("verified_on", "weights")}
        moved = {key: self._in_place(entry[key]) for key in _PATHS if key in entry}
        entry = {**about, **entry, **moved, "verification": proof}
        self.result["files"].append(entry)
        for file in network_files(entry["path"]):
            self.run.add_artifact(file, made_from=[source])
        self._save()
        return entry

    def _in_place(self, written: str) -> str:
        """The final path of a file written inside `until_proven`."""
        return str(self.run.export_dir / Path(written).name)

    def _save(self) -> None:
        write_exports(self.run, self.result)


def _metadata(run: RunDir, subject: Exportable) -> dict[str, str]:
    """The ONNX file's metadata: task, input and origin; values are JSON."""
    entries = {
        "task": subject.task,
        "model": subject.spec.name,
        **subject.input.metadata(),
        "classes": subject.classes,
        "weights_sha256": file_sha256(subject.weights),
        "run": run.path.resolve().name,
    }
    if subject.task == EMBED:
        entries["backbone_sha256"] = entries["weights_sha256"]
    return {f"{PREFIX}{key}": json.dumps(value) for key, value in entries.items()}
