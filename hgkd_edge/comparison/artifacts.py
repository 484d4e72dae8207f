"""The model files of a run that can be compared: the unchanged exported files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporters.choices import PRECISIONS
from exporters.network_files import network_digest, network_size
from exporters.onnx_info import onnx_info
from hgkd_edge.data.input_spec import BAKED
from hgkd_edge.export_record import ExportedFile, Proof, is_unchanged, read_exports
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.metadata import weights_digest

__all__ = ["RUNTIMES", "Artifact", "Exports", "artifacts_of"]

# Suffix of a file -> runner of `bench` that it is deployed with.
RUNTIMES = {
    ".safetensors": "torch",
    ".onnx": "ort-cpu",
    ".xml": "openvino",
    ".plan": "tensorrt",
}


@dataclass(frozen=True)
class Artifact:
    """One model file.

    Attributes:
        run: Its run.
        file: Path of the file.
        precision: `fp32`, `fp16` or `int8`, as it was exported.
        sha256: Digest of the network, weights in other files included.
        size_mb: Size of all its files in MiB.
        baked: Processing is part of the file, so its inputs or outputs differ.
        proof: Its recorded agreement with the fp32 network; None where it was compared with another
            file only.
    """

    run: RunDir
    file: Path
    precision: str
    sha256: str
    size_mb: float
    baked: bool = False
    proof: Proof | None = None

    @property
    def runtime(self) -> str:
        """The runner of `bench` that it is deployed with."""
        return RUNTIMES[self.file.suffix]


@dataclass(frozen=True)
class Exports:
    """The files of a run to compare.

    Attributes:
        artifacts: The files; first the weights, then the plain fp32 ONNX file, with which others
            are compared. Empty where there is no such file.
        remarks: Files that are skipped, and why.
    """

    artifacts: list[Artifact]
    remarks: list[str]

    @property
    def weights(self) -> Artifact:
        """The network before export."""
        return self.artifacts[0]

    @property
    def reference(self) -> Artifact:
        """The plain fp32 ONNX file."""
        return self.artifacts[1]


def artifacts_of(run: RunDir) -> Exports:
    """The run's weights and every file that was exported from them.

    Raises:
        RunError: `export.json` is damaged.
    """
    weights = run.model_file if run.model_file.is_file() else run.backbone_file
    if not run.own(weights).is_file():
        return Exports([], [f"{run.path}: has no weights yet"])
    digest, files = network_digest(weights), read_exports(run).files
    records = {one.name: one for one in files if Path(one.name).suffix in RUNTIMES}
    found, remarks = [], []
    for name, record in records.items():
        if why := _unfit(run, name, records, weights, digest):
            remarks.append(f"{run.export_dir / name}: {why}")
        else:
            found.append(_artifact(run, record, weights, records))
    found.sort(key=_place)
    if not found or _place(found[0])[:3] != (0, 0, 0):
        return Exports([], [*remarks, f"{run.path}: has no fp32 ONNX file of {weights.name}"])
    size = network_size(weights) / 2**20
    return Exports([Artifact(run, weights, "fp32", digest, size), *found], remarks)


def _place(artifact: Artifact) -> tuple[int, int, int, str]:
    """Plain files first, by precision, then by runtime."""
    known = artifact.precision in PRECISIONS
    precision = PRECISIONS.index(artifact.precision) if known else len(PRECISIONS)
    runtime = list(RUNTIMES).index(artifact.file.suffix) - 1
    return int(artifact.baked), precision, runtime, artifact.file.name


def _origins(name: str, records: Mapping[str, ExportedFile]) -> list[str]:
    """A file and its sources, down to the weights."""
    chain = [name]
    while chain[-1] in records and (source := records[chain[-1]].made_from) not in chain:
        chain.append(source)
    return chain


def _unfit(
    run: RunDir, name: str, records: Mapping[str, ExportedFile], weights: Path, digest: str
) -> str:
    """Why a file is skipped; '' if it is not."""
    chain = _origins(name, records)
    if chain[-1] != weights.name:
        return f"was exported from {chain[-1]}, the others from {weights.name}"
    for made in chain[:-1]:
        file = run.own(run.export_dir / made)
        if not records[made].passed:
            return "failed verification, do not deploy it"
        if not file.is_file():
            return "is missing" if made == name else f"is made from {made}, which is missing"
        if not is_unchanged(run, file):
            return "has changed since it was exported; export it again"
        if weights_digest(_metadata(file)) not in (None, digest):
            return f"was exported from an earlier {weights.name}; export it again"
    return ""


def _artifact(
    run: RunDir, record: ExportedFile, weights: Path, records: Mapping[str, ExportedFile]
) -> Artifact:
    file = run.export_dir / record.name
    source = records.get(record.made_from)
    from_fp32 = record.made_from == weights.name or (
        source is not None and source.precision == "fp32" and not _is_baked(run, source.name)
    )
    return Artifact(
        run=run,
        file=file,
        precision=record.precision,
        sha256=network_digest(file),
        size_mb=network_size(file) / 2**20,
        baked=any(_is_baked(run, made) for made in _origins(record.name, records)[:-1]),
        proof=record.verification if from_fp32 else None,
    )


def _is_baked(run: RunDir, name: str) -> bool:
    return BAKED in _metadata(run.export_dir / name)


def _metadata(file: Path) -> Mapping[str, str]:
    return onnx_info(file).metadata if file.suffix == ".onnx" else {}
