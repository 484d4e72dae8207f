"""The files of a run: their names, and how they are read and written. Plain data, no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgkd_edge.errors import RunError
from hgkd_edge.files import file_sha256, write_json
from hgkd_edge.recipe import Recipe, load_recipe

__all__ = ["RunFiles"]


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
        """The fully resolved recipe this run was made from."""
        return load_recipe(self.recipe_file)

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

    def read_json(self, file: Path) -> dict[str, Any]:
        """A JSON file of this run.

        Raises:
            RunError: It is damaged.
        """
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{file}: is damaged: {error}",
                hint="fix it, or move it away: the rest of the run is whole",
            ) from error

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
        return self.manifest().get("artefacts", {}).get(self._name(file), {}).get("sha256")

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
        if not file.is_file():
            raise RunError(f"run '{self.path}' has no {self._name(file)} yet", hint=mend)
        return file

    def _name(self, file: Path) -> str:
        file = file.resolve()
        root = self.path.resolve()
        return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
