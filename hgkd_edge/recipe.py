"""The recipe: what to distill, from what, on which images. Plain data, no torch.

A recipe is a YAML file read by a safe loader into pydantic models that reject unknown keys. Checks
that need the networks themselves (is the student convolutional? does the mask patch divide the
image?) are in `hgkd_edge.models`, which builds the networks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from hgkd_edge.errors import RecipeError
from hgkd_edge.pretrain_settings import PretrainConfig
from hgkd_edge.settings import Section, parse_settings, read_settings, settings_text

__all__ = [
    "Recipe",
    "builtin_recipes",
    "find_recipe",
    "load_recipe",
    "recipe_summary",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

PATHS = {
    "folder": "a folder of images, or a CSV file that lists them",
    "webdataset": "such as shards/train-{000..127}.tar",
    "hf": "a dataset's name on the hub, or its folder",
}


class DataConfig(Section):
    """Where images come from.

    `image_size` is the side (or [height, width]) in pixels that the networks see. `holdout` is the
    share that is kept from training where the data have no split. `decode`: `once` keeps all images
    decoded, `streaming` decodes them during training, `auto` streams data that would take more than
    a quarter of the memory. `workers` is the number of decoding threads. `bits` is the number of
    bits used in 16-bit image files.
    """

    source: Literal["folder", "webdataset", "hf", "bundled"] = "folder"
    path: Path | None = None
    image_size: Positive | tuple[Positive, Positive] = 224
    decode: Literal["auto", "once", "streaming"] = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    holdout: Fraction = 0.1
    crop_scale: tuple[float, float] = (0.67, 1.0)
    bits: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = "auto"

    @property
    def size(self) -> tuple[int, int]:
        """Image height and width in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> DataConfig:
        if self.source != "bundled" and self.path is None:
            raise ValueError(f"source '{self.source}' needs data.path, {PATHS[self.source]}")
        if self.source == "bundled" and self.path is not None:
            raise ValueError(
                "source 'bundled' takes no data.path; use source 'folder' for your own"
            )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError("crop_scale must hold 0 < low <= high <= 1")
        return self


class TeacherConfig(Section):
    """The frozen Transformer whose representation the student predicts.

    `weights`: `hub` loads through timm, `path` reads a local checkpoint, `pretrain` trains one
    without labels on the same images, `bundled` is the small demo teacher of this package.
    `layers` names blocks; `combine` sets whether their tokens are averaged (`mean`) or all
    predicted, one block's channels after the other's (`concat`). `standardize` takes the training
    images' mean token of every position from the targets and divides each channel by its spread.
    `cache` > 0 computes the teacher's targets once for this many views per image and keeps them on
    disk.
    """

    name: str
    weights: Literal["hub", "path", "pretrain", "bundled"] = "hub"
    path: Path | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    view: Literal["full", "visible"] = "full"
    layers: Literal["last"] | list[int] = "last"
    combine: Literal["mean", "concat"] = "mean"
    standardize: bool = True
    cache: Annotated[int, Field(ge=0, le=1000)] = 0
    pretrain: PretrainConfig = PretrainConfig()

    @field_validator("path")
    @classmethod
    def _home_is_spelled_out(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @model_validator(mode="after")
    def _path_goes_with_weights(self) -> TeacherConfig:
        if (self.weights == "path") != (self.path is not None):
            raise ValueError("teacher.path belongs to weights 'path', and only to it")
        if self.layers == []:
            raise ValueError("layers must be 'last' or name at least one block, such as [8, 11]")
        if self.view == "visible" and self.layers != "last":
            raise ValueError("view 'visible' gives the last block's tokens: set layers to 'last'")
        return self


class StudentConfig(Section):
    """The convolutional student: any timm model that supports `features_only`.

    `stem_stride` 4 is the model as published; 2 and 1 keep more resolution for small images
    (ResNets). `args` goes to `timm.create_model`. `head` predicts tokens from the decoder's map:
    one 1x1 convolution, or two with a GELU between. `weights`: `none` starts untrained, `hub` from
    the published weights of timm, `path` from a local checkpoint.
    """

    name: str
    weights: Literal["none", "hub", "path"] = "none"
    path: Path | None = None
    stem_stride: Literal[1, 2, 4] = 4
    backend: Literal["auto", "tiles", "masked", "spconv"] = "auto"
    args: dict[str, Any] = Field(default_factory=dict)
    decoder_width: Positive = 128
    head: Literal["linear", "mlp"] = "linear"

    @field_validator("path")
    @classmethod
    def _home_is_spelled_out(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @model_validator(mode="after")
    def _path_goes_with_weights(self) -> StudentConfig:
        if (self.weights == "path") != (self.path is not None):
            raise ValueError("student.path belongs to weights 'path', and only to it")
        return self


class AugmentConfig(Section):
    """Augmentation of a training view after its random crop and flip, for teacher and student.

    `colors` jitters brightness, contrast, saturation and hue, turns some images gray, blurs some.
    `mixup` mixes each image with its neighbor in the batch, in a random proportion.
    """

    colors: bool = False
    mixup: bool = False


class MaskConfig(Section):
    """Which patches the student sees: `ratio` of them are masked, `patch` pixels on a side.

    `ratio` is a number, or stages: a mapping from the share of the updates that are done to the
    ratio that holds from there. The last `whole_share` of the updates see whole images, as the
    network will once it is dense. The `per_image` masks of an image are drawn independently, or,
    if `disjoint`, show every patch once before they show any twice.
    """

    ratio: Fraction | dict[Fraction, Fraction] = 0.6
    whole_share: Fraction = 0.0
    patch: Literal["auto"] | Positive = "auto"
    per_image: Positive = 1
    disjoint: bool = False

    @property
    def stages(self) -> dict[float, float]:
        """Ratio from each share of the updates on, `whole_share` included, in order."""
        stages = dict(self.ratio) if isinstance(self.ratio, dict) else {0.0: self.ratio}
        return {**stages, 1 - self.whole_share: 0.0} if self.whole_share else stages

    @property
    def highest_ratio(self) -> float:
        """The ratio of the most masked stage, used to score predictions and sample views."""
        return max(self.stages.values())

    def ratio_at(self, progress: float) -> float:
        """Share of masked patches once `progress` of the updates are done, in [0, 1)."""
        return [ratio for start, ratio in self.stages.items() if start <= progress][-1]

    @field_validator("ratio", mode="wrap")
    @classmethod
    def _a_share_has_one_ratio(cls, value: Any, valid: Callable[[Any], Any]) -> Any:
        ratio = valid(value)
        if isinstance(value, dict) and len(ratio) < len(value):  # "0" and 0.0
            raise ValueError("two stages of ratio start at the same share")
        return ratio

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> MaskConfig:
        if not isinstance(self.ratio, dict):
            return self
        starts = list(self.ratio)
        if starts[:1] != [0]:
            raise ValueError("the first stage of ratio must start at 0, such as {0: 0.75, 0.8: 0}")
        if starts != sorted(starts):
            raise ValueError(f"the stages of ratio must be in order: {', '.join(map(str, starts))}")
        if self.whole_share and starts[-1] >= 1 - self.whole_share:
            raise ValueError(
                f"the stage of ratio at {starts[-1]:g} would never be reached: whole images start "
                f"at {1 - self.whole_share:g} (whole_share {self.whole_share:g})"
            )
        return self


class LossConfig(Section):
    """How prediction and target are compared, and where.

    `feature_weight` 0 with a `pixel_weight` is masked autoencoding without a teacher's features
    (SparK), for comparison. `cosine_weight` adds 1 - cosine to each token's distance `target`.
    `embedding_weight` adds 1 - cosine of one vector per image: predicted from the student's deepest
    map, and the teacher's class token (its mean token where it has no class token).
    """

    target: Literal["smooth_l1", "mse", "cosine"] = "smooth_l1"
    where: Literal["all", "masked", "visible"] = "all"
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    pixel_weight: Annotated[float, Field(ge=0)] = 0.0
    cosine_weight: Annotated[float, Field(ge=0)] = 0.0
    embedding_weight: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _something_is_learned(self) -> LossConfig:
        if self.feature_weight == self.pixel_weight == 0:
            raise ValueError("feature_weight and pixel_weight are both 0: nothing would be learned")
        for key in ("cosine_weight", "embedding_weight"):
            if getattr(self, key) and not self.feature_weight:
                raise ValueError(
                    f"{key} {getattr(self, key):g} needs the teacher, which feature_weight 0 "
                    f"disables: set {key} to 0 or feature_weight above 0"
                )
        return self


class TrainConfig(Section):
    """The optimization: one epoch is one pass over the images.

    `sync_batchnorm` takes BatchNorm's statistics over all processes' shares of a batch. `graph`:
    `auto` captures a distillation's forward and backward pass as a CUDA graph where possible, `off`
    never does.
    """

    epochs: Positive = 100
    batch_size: Positive = 256
    optimizer: Literal["adamw", "lamb"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_grad: Annotated[float, Field(ge=0)] = 5.0
    ema: Fraction = 0.999
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: Positive = 1
    sync_batchnorm: bool = False
    compile: bool = False
    graph: Literal["auto", "off"] = "auto"
    checkpoint_every: Positive = 10
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    @field_validator("graph", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as False

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            fits = max(1, self.batch_size // self.accumulate) * self.accumulate
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into accumulate = "
                f"{self.accumulate} parts: use a batch_size of {fits}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainConfig:
        if self.warmup_epochs <= self.epochs:
            return self
        if "warmup_epochs" in self.model_fields_set:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is more than epochs {self.epochs}: the "
                "rate would never come to lr; set warmup_epochs lower"
            )
        object.__setattr__(self, "warmup_epochs", self.epochs / 2)  # lowers only the default
        return self


class Recipe(Section):
    """A complete, resolved distillation; `hgkd-edge recipes show demo` prints an example."""

    name: str
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    augment: AugmentConfig = AugmentConfig()
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

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
        if self.augment.mixup:
            raise ValueError("augment.mixup makes a new image each time: set teacher.cache to 0")
        if not self.loss.feature_weight:
            raise ValueError("loss.feature_weight 0 has no teacher: set teacher.cache to 0")

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
    nearest = difflib.get_close_matches(path.stem, builtin, n=1, cutoff=0.5)
    raise RecipeError(
        f"no recipe file or built-in recipe '{name_or_path}'",
        hint=(f"did you mean '{nearest[0]}'? " if nearest else "")
        + f"built in: {', '.join(builtin)}",
    )


def recipe_summary(path: Path) -> str:
    """A recipe's first comment line: its result and cost."""
    first = settings_text(path).partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
