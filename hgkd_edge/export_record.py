"""The content of `export.json`: every exported file of a run, each with its verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from exporters.errors import ExportError, UserError, VerificationFailed
from exporters.network_files import network_files
from hgkd_edge.console import warn
from hgkd_edge.errors import RunError
from hgkd_edge.files import file_sha256, write_json
from hgkd_edge.records import Images, Record, RunRecord
from hgkd_edge.rundir import RunDir

__all__ = [
    "MOST_SCORED",
    "Accuracy",
    "CalibratedOn",
    "ExportIncomplete",
    "ExportRecord",
    "ExportedFile",
    "FailedFile",
    "LayerRank",
    "MadeBundle",
    "Proof",
    "VerifiedOn",
    "is_unchanged",
    "read_exports",
    "write_exports",
]

MOST_SCORED = 1000  # held-out images that an exported file is scored on, spread over the split


class VerifiedOn(Record):
    """The images that files were compared on."""

    split: str
    photos: int = 0


class OutputProof(Record):
    """The agreement of one output; None where the output has no such figure."""

    name: str
    max_abs_error: float | None = None


class Proof(Record):
    """How the outputs of a file agree with those of the file it was made from."""

    passed: bool = True
    precision: str = ""
    max_abs_error: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    iou: float | None = None
    noise: float | None = None
    outputs: list[OutputProof] = Field(default_factory=list)


class Accuracy(Record):
    """The score of an INT8 file in points, next to that of its fp32 file.

    `on` is None if no images were held out.
    """

    metric: str
    score: float
    float_score: float
    drop: float = 0.0
    max_drop: float = 0.0
    kept_float: list[str] = Field(default_factory=list)
    on: Images | None = None


class ExportedFile(Record):
    """One file. `verification` is None for an engine that does not run on this machine.

    `flavor` is set for INT8 files; `backend`, `version` and `device` for engines.
    """

    RENAMED: ClassVar[dict[str, str]] = {"flavour": "flavor"}

    kind: str
    precision: str
    path: str
    made_from: str = ""
    size_bytes: int = 0
    verification: Proof | None = None
    verified_on: VerifiedOn | None = None
    flavor: str | None = None
    accuracy: Accuracy | None = None
    backend: str = ""
    version: str = ""
    device: str = ""

    @property
    def name(self) -> str:
        """The file's name: its folder is the run's `export/`, wherever the run is now."""
        return Path(self.path).name

    @property
    def passed(self) -> bool:
        """Whether it may be deployed."""
        return self.verification is None or self.verification.passed


class FailedFile(Record):
    """A file that was not made, and why."""

    file: str
    reason: str
    hint: str = ""


class CalibratedOn(Record):
    """The images of a calibration, and how many ranges a quantization-aware network learned."""

    method: str = ""
    photos: int = 0
    source: str = Field(default="", validation_alias="from", serialization_alias="from")
    learned_inputs: int = 0


class LayerRank(Record):
    """The error that a layer alone adds in INT8, relative to the size of the outputs."""

    module: str
    damage: float


class MadeBundle(Record):
    """A folder to deploy; `files` are relative to it."""

    bundle: str
    path: str
    files: list[str] = Field(default_factory=list)
    made_from: str = ""


class ExportRecord(RunRecord):
    """The files of a run's exports; the other fields are of the last export.

    `onnx` and `verification` are the fp32 file's, `engine` the engine's if one was built.
    `sensitivity` ranks layers by INT8 flavor, most damaging first.
    """

    run: str = ""
    task: str = ""
    weights: str = ""
    precision: str = ""
    options: dict[str, object] = Field(default_factory=dict)
    verified_on: VerifiedOn | None = None
    calibration: CalibratedOn = Field(default_factory=CalibratedOn)
    files: list[ExportedFile] = Field(default_factory=list)
    failed: list[FailedFile] = Field(default_factory=list)
    onnx: ExportedFile | None = None
    verification: Proof | None = None
    engine: ExportedFile | None = None
    sensitivity: dict[str, list[LayerRank]] = Field(default_factory=dict)
    bundles: list[MadeBundle] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, content: Any) -> Any:
        """Earlier versions stated the images and weights once for all files, and part of `onnx`."""
        if not isinstance(content, dict) or not isinstance(content.get("files"), list):
            return content
        shared = {key: content[key] for key in ("verified_on", "weights") if key in content}
        files = [{**shared, **e} if isinstance(e, dict) else e for e in content["files"]]
        parts = {
            key: {"kind": kind, "precision": "fp32", **content[key]}
            for key, kind in (("onnx", "onnx"), ("engine", "engine"))
            if isinstance(content.get(key), dict)
        }
        return {**content, **parts, "files": files}


class ExportIncomplete(VerificationFailed):
    """Some files failed; files that do not depend on them were made.

    Args:
        result: As `export_run` returns it; `failed` lists the files that failed.
        failures: Their errors, in the order of `failed`.
    """

    def __init__(self, result: ExportRecord, failures: list[UserError]) -> None:
        hints = dict.fromkeys(error.hint for error in failures if error.hint)
        super().__init__("; ".join(error.message for error in failures), hint="; ".join(hints))
        self.exit_code = max(error.exit_code for error in failures)
        self.result, self.failures = result, failures


def write_exports(run: RunDir, made: ExportRecord) -> None:
    """Write `export.json`: this export, and every unchanged file of earlier ones.

    Args:
        run: The run; its manifest holds each file's sha256 at the time of recording.
        made: The files made so far.
    """
    names = {file.name for file in made.files}
    kept = [
        file
        for file in _earlier(run)
        if file.name not in names and is_unchanged(run, run.export_dir / file.name)
    ]
    files = [file.to_dict() for file in (*kept, *made.files)]
    write_json(run.export_file, {**made.to_dict(), "files": files})


def read_exports(run: RunDir) -> ExportRecord:
    """The content of `export.json`; without files if nothing was exported.

    Raises:
        RunError: It is damaged, or a later version wrote it.
    """
    return run.read_record(ExportRecord, run.export_file) or ExportRecord()


def _earlier(run: RunDir) -> list[ExportedFile]:
    try:
        return read_exports(run).files
    except RunError as error:
        warn(f"{error.message}; the proofs of earlier exports are lost, export those files again")
        return []


def is_unchanged(run: RunDir, file: Path) -> bool:
    """Whether a network is on disk with all its files, as recorded in the manifest."""
    try:
        files = network_files(file) if file.is_file() else ()
    except ExportError:  # its weights are missing
        return False
    return bool(files) and all(run.recorded_sha256(one) == file_sha256(one) for one in files)
