"""The recipe: what to distill, from what, on which images. Plain data, no torch.

A recipe is a YAML file that `hgkd_edge.yaml_settings` reads and that rejects unknown keys. Checks
that need the networks themselves (is the student convolutional? does the mask patch divide the
image?) are in `hgkd_edge.models`, which builds the networks.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import yaml
from pydantic import Field, field_validator, model_validator

from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe_sections import (
    DataConfig,
    LossConfig,
    MaskConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from hgkd_edge.yaml_settings import Section, parse_settings, read_settings, settings_text

__all__ = [
    "Recipe",
    "builtin_recipes",
    "find_recipe",
    "load_recipe",
    "recipe_summary",
]


class Recipe(Section):
    """A complete, resolved distillation; `hgkd-edge recipes show demo` prints an example."""

    removed: ClassVar[Mapping[str, object]] = {"augment": {"colors": False, "mixup": False}}

    name: str
    """Name of the run folder, `runs/NAME`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed for image order, masks, crops, and initial weights."""
    data: DataConfig
    """Where images come from."""
    teacher: TeacherConfig
    """The frozen Transformer."""
    student: StudentConfig
    """The convolutional network that is trained."""
    mask: MaskConfig = MaskConfig()
    """Which patches the student sees."""
    loss: LossConfig = LossConfig()
    """How prediction and target are compared."""
    train: TrainConfig = TrainConfig()
    """The optimization."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("must be letters, digits, '.', '_' or '-': it names the run's folder")
        return value

    @model_validator(mode="after")
    def _targets_exist_where_the_loss_looks(self) -> Recipe:
        if self.teacher.view == "visible" and self.loss.where != "visible":
            raise ValueError(
                "teacher.view 'visible' gives targets at visible patches only: "
                "set loss.where to 'visible'"
            )
        if self.loss.weigh_sites and not (self.teacher.standardize and self.loss.feature_weight):
            raise ValueError(
                "loss.weigh_sites needs standardized targets: set teacher.standardize to true and "
                "loss.feature_weight above 0"
            )
        if self.teacher.cache:
            self._targets_can_be_cached()
        whole = 0 in self.mask.stages.values()
        if self.loss.where == "masked" and whole:
            raise ValueError("whole images leave nothing masked: set loss.where to 'all'")
        if self.loss.feature_weight == 0 and whole:
            raise ValueError(
                "whole images leave no masked pixels to learn: with loss.feature_weight 0 set "
                "mask.ratio above 0 (in every stage) and mask.whole_share to 0"
            )
        return self

    def _targets_can_be_cached(self) -> None:
        if self.teacher.view == "visible":
            raise ValueError("view 'visible' changes with every mask: set teacher.cache to 0")
        if not self.loss.feature_weight:
            raise ValueError("loss.feature_weight 0 has no teacher: set teacher.cache to 0")
        data = self.data
        if self.teacher.cache > 1 and not data.flip and data.crop_scale == (1, 1):
            raise ValueError("without crops and flips all views are equal: set teacher.cache to 1")

    def to_yaml(self) -> str:
        """The recipe as YAML, in the schema's own order."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides; later ones win.

    Relative `data.path` and `teacher.path` in the file are taken from the working folder, as in
    every command-line tool.

    Raises:
        RecipeError: One line per problem, all problems together: file, key, value, nearest key.
    """
    return parse_settings(Recipe, read_settings(Path(path)), overrides, name=str(path))


def builtin_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package."""
    here = Path(__file__).parent
    # In a wheel the recipes are inside the package; in a checkout they are next to it.
    folders = [here / "_recipes", here.parent / "recipes"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def find_recipe(name_or_path: str) -> Path:
    """A recipe file, given its path or the name of a built-in recipe."""
    path, builtin = Path(name_or_path), builtin_recipes()
    if path.is_file():
        return path
    if name_or_path in builtin:
        return builtin[name_or_path]
    nearest = difflib.get_close_matches(path.stem, builtin, n=1, cutoff=0.7)
    hint = f"did you mean the built-in recipe '{nearest[0]}'?" if nearest else ""
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        write = f"write one: hgkd-edge recipes new --out {shlex.quote(name_or_path)}"
        raise RecipeError(f"no recipe file '{name_or_path}'", hint=hint or write)
    raise RecipeError(
        f"no recipe file or built-in recipe '{name_or_path}'",
        hint=hint or f"built in: {', '.join(builtin)}",
    )


def recipe_summary(path: Path) -> str:
    """A recipe's first comment line: its result and cost."""
    first = settings_text(path).partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
