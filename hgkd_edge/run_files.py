"""The files of a run: their names, and how they are read and written. Plain data, no torch."""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgkd_edge.errors import RunError, reason_of
from hgkd_edge.files import file_sha256, read_regular, write_json
from hgkd_edge.recipe import Recipe, load_recipe

__all__ = ["RunFiles", "require_recorded"]

# Folders of a run whose files are read and written by name; trackers look after their own.
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

    def recipe(self) -> Recipe:
        """The fully resolved recipe this run was made from.

        Raises:
            RunError: The file is a link out of the run.
            RecipeError: It is no recipe.
        """
        return load_recipe(self.own(self.recipe_file))

    def own(self, file: Path) -> Path:
        """`file`, if following links from it leads to a file or folder of this run.

        Run folders are shared and downloaded: a link in one could name any file of its reader.

        Raises:
            RunError: It leads out of the run, or to a pipe, a device or a socket.
        """
        real, root = file.resolve(), self.path.resolve()
        if not real.is_relative_to(root):
            raise RunError(
                f"{file}: is a link that leaves the run folder, to {real}",
                hint=f"remove it (rm {shlex.quote(str(file))}), or put a copy in its place",
            )
        try:
            mode = real.stat().st_mode
        except OSError:  # not there yet, or not ours to see: met by whoever opens it
            return file
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise RunError(
                f"{file}: is neither a file nor a folder",
                hint=f"remove it: rm {shlex.quote(str(file))}",
            )
        return file

    def require_own_files(self) -> None:
        """See that every file of the run is its own, as `own` does.

        Raises:
            RunError: One is not.
        """
        for entry in self.path.iterdir():
            self.own(entry)
        for folder in FOLDERS:
            if (self.path / folder).is_dir():
                for entry in (self.path / folder).rglob("*"):
                    self.own(entry)

    @property
    def is_distilled(self) -> bool:
        """Whether its distillation is finished, its result included."""
        return self.backbone_file.is_file() and "result" in self.manifest()

    @property
    def is_finetuned(self) -> bool:
        """Whether its fine-tuning is finished, its scores and model card included."""
        files = (self.model_file, self.finetune_result_file, self.card_file)
        return all(file.is_file() for file in files)

    @property
    def holds_finetuning(self) -> bool:
        """Whether there is a fine-tuned model, or one to resume, that another would overwrite."""
        return self.model_file.is_file() or self.finetune_checkpoint_file.is_file()

    def finetune_result(self) -> dict[str, Any]:
        """What `finetune` left in `finetune.json`.

        Raises:
            RunError: It is damaged.
        """
        return self.read_json(self.finetune_result_file)

    def manifest(self) -> dict[str, Any]:
        """The manifest so far; empty for a run that has just begun.

        Raises:
            RunError: It is damaged.
        """
        return self.read_json(self.manifest_file) if self.manifest_file.is_file() else {}

    def read_bytes(self, file: Path) -> bytes:
        """All bytes of one of this run's own files.

        Raises:
            RunError: It leads out of the run, or is no file.
        """
        return read_regular(self.own(file).resolve())

    def read_json(self, file: Path) -> dict[str, Any]:
        """A JSON file of this run.

        Raises:
            RunError: It is damaged.
        """
        try:
            content = json.loads(self.read_bytes(file))
            if not isinstance(content, dict):
                raise ValueError("it holds no mapping")
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{file}: is damaged: {reason_of(error)}",
                hint="fix it, or move it away: the rest of the run is whole",
            ) from error
        return content

    def update_manifest(self, **entries: Any) -> None:
        """Set top-level entries of the manifest."""
        write_json(self.manifest_file, {**self.manifest(), **entries})

    def drop_from_manifest(self, entry: str) -> None:
        """Remove a top-level entry of the manifest, if it is there."""
        manifest = self.manifest()
        if manifest.pop(entry, None) is not None:
            write_json(self.manifest_file, manifest)

    def recorded_sha256(self, file: Path) -> str | None:
        """What the manifest says of a file of this run; None if it says nothing."""
        artefacts = self.manifest().get("artefacts")
        entry = artefacts.get(self._name(file)) if isinstance(artefacts, dict) else None
        return entry.get("sha256") if isinstance(entry, dict) else None

    def require_recorded(self, file: Path) -> None:
        """See that a file is the one that the manifest records, if it records it.

        Raises:
            RunError: Its bytes are others; says how to continue with them.
        """
        recorded = self.recorded_sha256(file)
        if recorded is None or not file.is_file():
            return
        found = file_sha256(file)
        if found != recorded:
            raise RunError(
                f"{file}: is not the file that {self.manifest_file} records "
                f"(sha256 {found[:12]}, recorded {str(recorded)[:12]})",
                hint=f"make it again; or, if you replaced it on purpose, delete the entry "
                f"'{self._name(file)}' under 'artefacts' in {self.manifest_file}",
            )

    def enter(self, file: Path, made_from: Sequence[Path]) -> None:
        """Record a file's sha256 and what it was made from."""
        artefacts = self.manifest().get("artefacts", {})
        artefacts[self._name(file)] = {
            "sha256": file_sha256(file),
            "made_from": [self._name(source) for source in made_from],
        }
        self.update_manifest(artefacts=artefacts)

    @property
    def resume_command(self) -> str:
        """What a user types to continue this run's distillation."""
        recipe, path = shlex.quote(str(self.recipe_file)), self.quoted
        return f"hgkd-edge distill {recipe} --run {path} --resume"

    @property
    def quoted(self) -> str:
        """The folder as a user types it in a shell."""
        return shlex.quote(str(self.path))

    def require(self, file: Path, *, mend: str) -> Path:
        """`file`, if it is there.

        Raises:
            RunError: It is not; `mend` says which command makes it.
        """
        if not self.own(file).is_file():
            raise RunError(f"run '{self.path}' has no {self._name(file)} yet", hint=mend)
        return file

    def _name(self, file: Path) -> str:
        file = file.resolve()
        root = self.path.resolve()
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def require_recorded(file: Path) -> None:
    """Of a file that lies in a run: see that it is the one that the run's manifest records.

    Files next to it that belong to the same network (OpenVINO's weights, ONNX external data) too.
    A file outside any run passes.

    Raises:
        RunError: It is another one, or the manifest is damaged.
    """
    for folder in (file.parent, file.parent.parent):
        run = RunFiles(folder)
        if run.manifest_file.is_file() and run.recipe_file.is_file():
            for part in (file, file.with_suffix(".bin"), file.with_name(f"{file.name}.data")):
                run.require_recorded(part)
            return
