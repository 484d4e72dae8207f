"""The files of a run: their names, and how they are read and written. Plain data, no torch."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from exporters.network_files import network_files
from hgkd_edge.console import note
from hgkd_edge.errors import RunError, reason_of
from hgkd_edge.files import file_sha256, read_regular, write_json
from hgkd_edge.manifest_record import Artifact, Circumstances, ManifestRecord
from hgkd_edge.parsing import MAX_RECORD_BYTES, decode_text, parse_json
from hgkd_edge.recipe import Recipe, load_recipe
from hgkd_edge.records import SCHEMA_VERSION, RecordType, parse_record
from hgkd_edge.score_records import EvaluationRecord, FeatureRecord, FinetuneRecord

__all__ = ["RunFiles", "require_recorded"]

# Folders of a run whose files are read and written by name; trackers manage their own.
FOLDERS = ("checkpoints", "export", "pictures")


class RunFiles:
    """The names inside a run folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.manifest_file = path / "manifest.json"
        self.log_file = path / "log.jsonl"
        self.checkpoint_file = path / "checkpoints" / "last.pt"
        self.backbone_file = path / "backbone.safetensors"
        self.model_file = path / "model.safetensors"
        self.card_file = path / "model_card.md"
        self.finetune_file = path / "finetune.yaml"
        self.finetune_log_file = path / "finetune.jsonl"
        self.finetune_checkpoint_file = path / "checkpoints" / "finetune.pt"
        self.finetune_result_file = path / "finetune.json"
        self.export_file = path / "export.json"
        self.export_dir = path / "export"
        self.bench_images_file = self.export_dir / "images.npy"
        self.evaluation_file = path / "evaluation.json"
        self.scores_file = path / "scores.json"
        self.bench_file = path / "bench.json"
        self.demo_file = path / "demo.json"
        self.report_file = path / "report.html"
        self.pictures_dir = path / "pictures"
        self.previews_dir = self.pictures_dir / "distillation"
        self.lock_file = path / ".lock"

    def recipe(self) -> Recipe:
        """The fully resolved recipe this run was made from.

        Raises:
            RunError: The file is a link out of the run.
            RecipeError: It is not a recipe.
        """
        return load_recipe(self.own(self.recipe_file))

    def own(self, file: Path) -> Path:
        """`file`, if following links from it leads to a file or folder of this run.

        Run folders are shared and downloaded: a link in one could name any file of its reader.

        Raises:
            RunError: It leads out of the run, in a circle, or to a pipe, a device or a socket.
        """
        circle = RunError(
            f"{file}: is a link that leads in a circle",
            hint=f"remove it: rm {shlex.quote(str(file))}",
        )
        try:
            real, root = file.resolve(), self.path.resolve()
        except (OSError, RuntimeError) as error:
            raise circle from error
        if not real.is_relative_to(root):
            raise RunError(
                f"{file}: is a link that leaves the run folder, to {real}",
                hint=f"remove it (rm {shlex.quote(str(file))}), or put a copy in its place",
            )
        try:
            mode = real.stat().st_mode
        except OSError as error:
            if error.errno == errno.ELOOP:  # Python 3.13 and later resolve it
                raise circle from error
            return file  # missing or not accessible: opening it raises
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise RunError(
                f"{file}: is neither a file nor a folder",
                hint=f"remove it: rm {shlex.quote(str(file))}",
            )
        return file

    def require_own_files(self) -> None:
        """Check that every file of the run stays in the run, as `own` does, and is a file.

        A folder in the place of a file would be noticed only when hours of work are to be written.

        Raises:
            RunError: One is not.
        """
        for entry in self.path.iterdir():
            self.own(entry)
        for name, place in vars(self).items():
            if name.endswith("_file") and place.is_dir():
                raise RunError(f"{place}: is a folder, not a file", hint="move it elsewhere")
        for folder in (self.path / name for name in FOLDERS):
            if folder.is_file():
                raise RunError(f"{folder}: is a file, not a folder", hint="move it elsewhere")
            for entry in folder.rglob("*"):
                self.own(entry)

    def is_run(self) -> bool:
        """Whether the folder is a run that has recorded something."""
        return self.manifest_file.is_file() and self.recipe_file.is_file()

    @property
    def is_distilled(self) -> bool:
        """Whether its distillation is finished and its result recorded."""
        return self.backbone_file.is_file() and self.manifest().result is not None

    @property
    def is_finetuned(self) -> bool:
        """Whether its fine-tuning is finished, with scores and model card."""
        files = (self.model_file, self.finetune_result_file, self.card_file)
        return all(file.is_file() for file in files)

    @property
    def holds_finetuning(self) -> bool:
        """Whether there is a fine-tuned model, or one to resume, that another would overwrite."""
        return self.model_file.is_file() or self.finetune_checkpoint_file.is_file()

    def finetune_result(self) -> FinetuneRecord | None:
        """The content of `finetune.json`; None before the end of a fine-tuning.

        Raises:
            RunError: It is damaged, or a later version wrote it.
        """
        return self.read_record(FinetuneRecord, self.finetune_result_file)

    def evaluation(self) -> FeatureRecord | EvaluationRecord | None:
        """The content of `evaluation.json`, of features or of a model; None where there is none.

        Raises:
            RunError: It is damaged, or a later version wrote it.
        """
        if not self.evaluation_file.is_file():
            return None
        content = self.read_json(self.evaluation_file)
        if "distilled" in content:
            return parse_record(FeatureRecord, content, self.evaluation_file)
        return parse_record(EvaluationRecord, content, self.evaluation_file)

    def manifest(self) -> ManifestRecord:
        """The manifest so far; empty for a new run.

        Raises:
            RunError: It is damaged, or a later version wrote it.
        """
        return self.read_record(ManifestRecord, self.manifest_file) or ManifestRecord()

    def read_bytes(self, file: Path, limit: int = MAX_RECORD_BYTES) -> bytes:
        """All bytes of a file of this run.

        Raises:
            RunError: It leads out of the run, is no file, or has more than `limit` bytes.
        """
        real = self.own(file).resolve()
        if real.is_file() and (size := real.stat().st_size) > limit:
            raise RunError(
                f"{file}: has {size:,} bytes; up to {limit:,} are read",
                hint="move it away: the rest of the run is intact",
            )
        return read_regular(real)

    def read_json(self, file: Path) -> dict[str, object]:
        """A JSON file of this run.

        Raises:
            RunError: It is damaged.
        """
        try:
            content = parse_json(decode_text(self.read_bytes(file)))
            if not isinstance(content, dict):
                raise ValueError("it is not a mapping")
        except ValueError as error:
            raise RunError(
                f"{file}: is damaged: {reason_of(error)}",
                hint="fix it, or move it away: the rest of the run is intact",
            ) from error
        return content

    def read_record(self, kind: type[RecordType], file: Path) -> RecordType | None:
        """A JSON file of this run as a record; None where there is no such file.

        Raises:
            RunError: It is damaged, or a later version wrote it.
        """
        return parse_record(kind, self.read_json(file), file) if file.is_file() else None

    def update_manifest(self, entries: Circumstances) -> None:
        """Set top-level entries of the manifest: those that are set in `entries`."""
        content = self.manifest().to_dict() | entries.to_dict()
        made = ManifestRecord.model_validate({**content, "schema_version": SCHEMA_VERSION})
        write_json(self.manifest_file, made.to_dict())

    def drop_from_manifest(self, entry: str) -> None:
        """Remove a top-level entry of the manifest, if it is there."""
        content = self.manifest().to_dict()
        if content.pop(entry, None) is not None:
            write_json(self.manifest_file, content)

    def recorded_sha256(self, file: Path) -> str | None:
        """The manifest's record of a file of this run; None if there is none."""
        artifact = self.manifest().artifacts.get(self._name(file))
        return artifact.sha256 if artifact is not None else None

    def require_recorded(self, file: Path) -> bool:
        """Check a file against the manifest; returns whether the manifest records it.

        Raises:
            RunError: Its content differs; the hint says how to continue with it.
        """
        recorded = self.recorded_sha256(file)
        if recorded is None or not file.is_file():
            return False
        found = file_sha256(file)
        if found != recorded:
            raise RunError(
                f"{file}: is not the file that {self.manifest_file} records "
                f"(sha256 {found[:12]}, recorded {recorded[:12]})",
                hint=f"make it again; or, if you replaced it on purpose, delete the entry "
                f"'{self._name(file)}' under 'artifacts' in {self.manifest_file}",
            )
        return True

    def enter(self, file: Path, made_from: Sequence[Path]) -> None:
        """Record a file's sha256 and what it was made from.

        Raises:
            RunError: The manifest is damaged.
        """
        sources = [self._name(source) for source in made_from]
        artifact = Artifact(sha256=file_sha256(file), made_from=sources)
        artifacts = self.manifest().artifacts | {self._name(file): artifact}
        self.update_manifest(ManifestRecord(artifacts=artifacts))

    @property
    def resume_command(self) -> str:
        """The command that resumes this run's distillation."""
        recipe, path = shlex.quote(str(self.recipe_file)), self.quoted
        return f"hgkd-edge distill {recipe} --run {path} --resume"

    @property
    def quoted(self) -> str:
        """The folder, quoted for a shell."""
        return shlex.quote(str(self.path))

    def require(self, file: Path, *, fix: str) -> Path:
        """`file`, if it exists.

        Raises:
            RunError: It does not; `fix` names the command that makes it.
        """
        if not self.own(file).is_file():
            raise RunError(f"run '{self.path}' has no {self._name(file)} yet", hint=fix)
        return file

    def _name(self, file: Path) -> str:
        """A file's name in the manifest: its path in the folder, links not followed."""
        file, root = Path(os.path.abspath(file)), Path(os.path.abspath(self.path))
        if not file.is_relative_to(root):  # the folder, or the file, was reached through a link
            file, root = file.parent.resolve() / file.name, root.resolve()
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def require_recorded(file: Path) -> None:
    """Check a file inside a run against the run's manifest.

    Checks every other file of the same network too: OpenVINO's weights, ONNX external data. Prints
    the compared files. A file outside any run passes.

    Raises:
        RunError: It differs, or the manifest is damaged.
        ExportError: A file of the network is missing, or outside its folder.
    """
    for place in (file, file.resolve()):  # as it is named, or where a link to it leads
        run = next(filter(RunFiles.is_run, map(RunFiles, place.parents)), None)
        if run is not None:
            break
    if run is None or not run.require_recorded(place):
        return  # an unrecorded file has nothing to compare with
    compared = [part.name for part in network_files(place) if run.require_recorded(part)]
    note(f"verified against {run.manifest_file}: {', '.join(compared)}")
