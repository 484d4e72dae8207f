"""Export a run: weights -> verified ONNX -> fp16, INT8 -> OpenVINO, TensorRT. `exporters` does it.

Every file is made from the fp32 ONNX file, which is made from the weights. Each file is compared on
held-out images with the file it was made from, before it gets its final name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exporters import (
    ConversionFailed,
    ExportError,
    MissingPackageError,
    UserError,
)
from exporters.atomic_files import until_proven
from exporters.network_files import network_files
from hgkd_edge.bundles import BundleSource, flavor_of, make_bundle, require_bundle
from hgkd_edge.calibration_images import require_calibration_folder
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_plan import POSTPROCESSING, VERIFICATION_PHOTOS, Artifact, Plan
from hgkd_edge.export_record import (
    ExportedFile,
    ExportIncomplete,
    ExportRecord,
    FailedFile,
    VerifiedOn,
    write_exports,
)
from hgkd_edge.exportable import Exportable, load_exportable
from hgkd_edge.files import atomic_write
from hgkd_edge.records import SCHEMA_VERSION
from hgkd_edge.rundir import RunDir

__all__ = ["ExportIncomplete", "export_run", "verification_images"]

BENCH_PHOTOS = 16
_PATHS = ("path", "weights", "sidecar")  # that an exporter reports, if the file has them


def export_run(run: RunDir, options: ExportOptions | None = None) -> ExportRecord:
    """Export a run's model, verify every file on held-out images, and record the files.

    Args:
        run: Its `model.safetensors` is exported, or `backbone.safetensors` where there is none.
        options: What to export; by default only the fp32 ONNX.

    Returns:
        Every file with its verification. Also written to the run's `export.json`, after every file.

    Raises:
        RunError: The run has no weights yet.
        DataError: Its images, or the calibration images, cannot be read.
        ExportError: Options that cannot work, or the fp32 file failed, which all others need.
        ExportIncomplete: Other files failed, or a runtime is not installed.
    """
    options = options or ExportOptions()
    require_calibration_folder(options)
    subject = load_exportable(run, backbone=options.backbone)
    if options.bake_postprocessing and subject.task not in POSTPROCESSING:
        raise ExportError(
            "--bake-postprocessing: a bare backbone gives an embedding, nothing to process",
            hint="fine-tune the run first, or remove the option",
        )
    for name in options.bundles:
        require_bundle(name, subject)
    work = _Work(run, options, subject)
    first, *others = work.plan.artifacts()
    work.make_first(first)
    for artifact in others:
        with work.separately(artifact.path.name):
            work.make(artifact)
    for name in dict.fromkeys(options.bundles):
        with work.separately(name):
            work.make_bundle(name)
    if work.failures:
        raise ExportIncomplete(work.record, work.failures)
    return work.record


def verification_images(run: RunDir) -> np.ndarray:
    """Images as a run's backbone sees them, float32 [N, 3, H, W]; held-out ones if any."""
    subject = load_exportable(run, backbone=True)
    return subject.images(subject.unseen, VERIFICATION_PHOTOS)


class _Work:
    """One export in progress: its plan, and the record of the files made so far."""

    def __init__(self, run: RunDir, options: ExportOptions, subject: Exportable) -> None:
        self.run, self.options, self.subject = run, options, subject
        self.record = ExportRecord(
            schema_version=SCHEMA_VERSION,
            run=str(run.path),
            task=subject.task,
            weights=subject.weights.name,
            precision=options.precision,
            options=options.to_dict(),
            files=[],
            failed=[],
        )
        self.plan = Plan(run, options, subject, self.record)
        self.record.verified_on = VerifiedOn(split=subject.unseen, photos=len(self.plan.images))
        self.failures: list[UserError] = []

    @contextmanager
    def separately(self, name: str) -> Iterator[None]:
        """A file that fails here is recorded, and does not stop files that do not need it."""
        try:
            yield
        except (ExportError, MissingPackageError) as error:
            self.failures.append(error)
            self.record.failed.append(FailedFile(file=name, reason=error.message, hint=error.hint))
            write_exports(self.run, self.record)

    def make_first(self, artifact: Artifact) -> None:
        """The fp32 file, and the images that `bench` verifies it on before it measures."""
        file = self.make(artifact)
        self.record.onnx, self.record.verification = file, file.verification
        path = self.run.bench_images_file
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, self.plan.images[:BENCH_PHOTOS])
        self.run.add_artifact(path)
        write_exports(self.run, self.record)

    def make(self, artifact: Artifact) -> ExportedFile:
        """Make a file, prove it, move it to its place and record it.

        Raises:
            ConversionFailed: It cannot be made, or its source failed.
            VerificationFailed: It does not agree with its source.
        """
        self._require(artifact.source)
        with until_proven(artifact.path) as lent:
            fields = artifact.make(lent).to_dict()
            proof = artifact.prove(lent)
        moved = {
            key: str(artifact.path.parent / Path(fields[key]).name)
            for key in _PATHS
            if key in fields
        }
        about = {"kind": artifact.kind, "precision": artifact.precision}
        file = ExportedFile.model_validate(
            {
                **about,
                "made_from": artifact.source.name,
                "weights": self.record.weights,
                "verified_on": self.record.verified_on,
                **fields,
                **moved,
                "verification": None if proof is None else proof.to_dict(),
            }
        )
        self.record.files.append(file)
        if artifact.kind == "engine":
            self.record.engine = file
        for part in network_files(artifact.path):
            self.run.add_artifact(part, made_from=[artifact.source])
        write_exports(self.run, self.record)
        return file

    def make_bundle(self, name: str) -> None:
        """Fill a folder to deploy from the files made before."""
        plain = self.plan.plain(flavor_of(name, self.options.made_flavors()))
        source = BundleSource(
            run=self.run,
            subject=self.subject,
            plain=plain,
            baked=self.plan.deployed(plain),
            precision=self.options.precision,
            options=self.options,
        )
        self._require(source.plain)
        self._require(source.baked)
        made = make_bundle(name, source, self.run.export_dir / name)
        for file in made.files:
            made_from = self.run.export_dir / made.made_from
            self.run.add_artifact(self.run.export_dir / name / file, made_from=[made_from])
        self.record.bundles = [*self.record.bundles, made]
        write_exports(self.run, self.record)

    def _require(self, source: Path) -> None:
        """Reject a source that failed, although an earlier export may have left it on disk.

        Raises:
            ConversionFailed: Names it.
        """
        if source.name in {failed.file for failed in self.record.failed}:
            raise ConversionFailed(
                f"not made, because '{source.name}' failed, from which it is made"
            )
