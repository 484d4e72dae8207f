"""Fine-tuning settings: plain data, no torch. The command line's options are stored in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hgkd_edge.console import console
from hgkd_edge.data.csv_list import is_table, table_photos
from hgkd_edge.errors import DataError, RunError
from hgkd_edge.recipe_sections import DataConfig, Fraction, TrainConfig
from hgkd_edge.rundir import RunDir
from hgkd_edge.yaml_settings import Section, differing_keys, parse_settings, read_settings

__all__ = [
    "ClassifyConfig",
    "DetectConfig",
    "FinetuneConfig",
    "FinetuneTrainConfig",
    "QatConfig",
    "SegmentConfig",
    "ViewConfig",
    "quantization_aware",
    "recorded_settings",
    "resolve",
    "resume",
    "settled",
]


Code = Annotated[int, Field(ge=0, le=255)]  # a label map's pixel value


class FinetuneTrainConfig(TrainConfig):
    """The optimization; `layer_decay` trains early layers more slowly than late ones."""

    epochs: Annotated[int, Field(gt=0)] = 50
    batch_size: Annotated[int, Field(gt=0)] = 64
    warmup_epochs: Annotated[float, Field(ge=0)] = 3
    ema: Fraction = 0.99
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.8

    @field_validator("compile", "evaluate_every")
    @classmethod
    def _is_for_distillation(cls, value: Any, info: ValidationInfo) -> Any:
        if value != cls.model_fields[info.field_name or ""].default:
            raise ValueError("is for distillation only; remove it")
        return value


class ClassifyConfig(Section):
    """Augmentation and loss of classification.

    `probe_first` starts from a linear probe's weights (Kumar et al. 2022, LP-FT), so that a random
    head does not distort distilled features. `balance` weights classes by their inverse frequency.
    `threshold` is the lowest probability of a label where images have several.
    """

    augment: Literal["trivial", "randaugment", "none"] = "trivial"
    mixup: Annotated[float, Field(ge=0)] = 0.1
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Fraction = 0.1
    probe_first: bool = True
    balance: bool = False
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5


class ViewConfig(Section):
    """Random views of images with spatial labels: label maps and boxes.

    `zoom` is the smallest and largest enlargement, `color` the largest change of brightness and
    contrast. `vertical_flip` is for images without an up, such as micrographs.
    """

    renamed: ClassVar[Mapping[str, str]] = {"colour": "color"}

    zoom: tuple[float, float] = (0.7, 1.5)
    vertical_flip: bool = False
    color: Fraction = 0.2

    @model_validator(mode="after")
    def _zoom_is_a_range(self) -> ViewConfig:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError("zoom must hold 0 < low <= high")
        return self


class SegmentConfig(ViewConfig):
    """Views of segmentation, and how label maps are read.

    `binary` treats all numbers above 0 (all objects) as one class. `codes` are the numbers of the
    classes in masks, in class order: `auto` makes every number that occurs a class, `numbers` takes
    them as class numbers, including unused ones. `ignore` is the number of pixels without a class.
    """

    binary: bool = False
    codes: Literal["auto", "numbers"] | Annotated[tuple[Code, ...], Field(min_length=2)] = "auto"
    ignore: Literal["auto", "none"] | Code = "auto"

    @model_validator(mode="after")
    def _codes_are_distinct(self) -> SegmentConfig:
        if not isinstance(self.codes, str) and len({*self.codes, self.ignore}) <= len(self.codes):
            raise ValueError(f"codes {list(self.codes)} and ignore {self.ignore} must all differ")
        return self


class DetectConfig(ViewConfig):
    """Views of detection."""


class QatConfig(Section):
    """Quantization-aware fine-tuning: the network is trained as its INT8 file will compute.

    `model` is the fine-tuned network that it starts from. `calibration` is the number of training
    images that set the ranges of activations.
    """

    model: Path
    calibration: Annotated[int, Field(gt=0)] = 512


class FinetuneConfig(Section):
    """A complete fine-tuning, fully resolved; stored next to the model as `finetune.yaml`.

    `backbone` is a run's `backbone.safetensors`: the architecture. `init`: `distilled` starts from
    its weights, `timm` from the hub's for the same architecture, `scratch` from none. `label_share`
    trains on that share of every class's images (classify) or of all images.
    `qat` continues from a fine-tuned model instead. `multilabel` is classification where images
    have several labels or none; it has the settings of `classify`.
    """

    task: Literal["classify", "multilabel", "segment", "detect"]
    backbone: Path
    data: DataConfig
    init: Literal["distilled", "timm", "scratch"] = "distilled"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    label_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    classify: ClassifyConfig = ClassifyConfig()
    segment: SegmentConfig = SegmentConfig()
    detect: DetectConfig = DetectConfig()
    qat: QatConfig | None = None
    train: FinetuneTrainConfig = FinetuneTrainConfig()

    @property
    def threshold(self) -> float | None:
        """Lowest probability of a label; None for tasks without one."""
        return self.classify.threshold if self.task == "multilabel" else None


def resolve(
    run: RunDir, task: str, data: Path | None, init: str, overrides: Sequence[str] = ()
) -> FinetuneConfig:
    """Settings of a fine-tuning: the run's own images and image size unless overridden.

    Raises:
        RecipeError: One line that lists all problems.
        RunError: The run has no backbone yet.
        DataError: `data` does not exist.
    """
    recipe, backbone = run.recipe(), run.require(run.backbone_file, fix=run.resume_command)
    photos = recipe.data.model_dump(mode="json")
    if data is not None:
        if not data.exists():
            raise DataError(f"--data {data}: there is no such folder or file")
        photos |= {"source": "folder", "path": str(data), "bits": "auto"}
    raw: dict[str, Any] = {
        "task": task,
        "backbone": str(backbone.resolve()),
        "init": init,
        "seed": recipe.seed,
        "data": photos,
    }
    return _for_labels(parse_settings(FinetuneConfig, raw, overrides, name="finetune"))


def _for_labels(config: FinetuneConfig) -> FinetuneConfig:
    """The same settings with task `multilabel` for `classify` if images have several labels.

    Raises:
        DataError: The images are listed in a table that cannot be read.
    """
    if config.task != "classify" or not is_table(config.data):
        return config
    if not table_photos(config.data).multi_hot:
        return config
    console.print(f"{config.data.path}: several labels per image, so the task is multilabel")
    return config.model_copy(update={"task": "multilabel"})


def quantization_aware(run: RunDir, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Settings that continue a run's fine-tuning with INT8 simulated: a fifth as long, gently.

    Raises:
        RecipeError: One line, all problems together.
        RunError: The run has no fine-tuned model, or one that is quantization-aware already.
    """
    model = run.require(run.model_file, fix=f"hgkd-edge finetune {run.quoted}")
    recorded = recorded_settings(run)
    if recorded.qat is not None:
        raise RunError(
            f"the model of run '{run.path}' is quantization-aware already",
            hint=f"hgkd-edge export {run.quoted} --precision int8",
        )
    raw = recorded.model_dump(mode="json")
    raw["qat"] = {"model": str(model.resolve())}
    raw["classify"]["probe_first"] = False
    raw["train"] |= {
        "epochs": max(1, recorded.train.epochs // 5),
        "lr": recorded.train.lr / 10,
        "warmup_epochs": 0,
        "ema": 0,
    }
    chosen = _for_labels(parse_settings(FinetuneConfig, raw, overrides, name="finetune"))
    if (chosen.task, chosen.init) != (recorded.task, recorded.init):
        raise RunError(
            f"the model of run '{run.path}' was fine-tuned with task {recorded.task} and init "
            f"{recorded.init}, which --qat keeps",
            hint="remove --task and --init",
        )
    return chosen


def recorded_settings(run: RunDir) -> FinetuneConfig:
    """Settings of a fine-tuning that was started.

    Raises:
        RunError: No fine-tuning was started.
    """
    file = run.require(run.finetune_file, fix=f"hgkd-edge finetune {run.quoted}")
    raw = read_settings(file)
    sections = {name: part for name, part in raw.items() if isinstance(part, dict)}
    for name in ("segment", "detect"):  # its name in files of earlier versions
        if "colour" in sections.get(name, ()):
            sections[name]["color"] = sections[name].pop("colour")
    for key in ("compile", "evaluate_every"):  # earlier versions accepted and ignored them
        sections.get("train", {}).pop(key, None)
    # Defaults for files written before these settings were recorded.
    for name, key, value in (("segment", "codes", "numbers"), ("data", "bits", 16)):
        sections.get(name, {}).setdefault(key, value)
    return parse_settings(FinetuneConfig, raw, name=str(file))


def settled(config: FinetuneConfig, decided: dict[str, object]) -> FinetuneConfig:
    """The same settings with the values decided from the data, for resuming and evaluation.

    Args:
        config: The requested settings.
        decided: Value by key, from `ImageSource.decided`.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in decided.items()]
    raw = config.model_dump(mode="json")
    return parse_settings(FinetuneConfig, raw, overrides, name="finetune")


def resume(run: RunDir, asked: Sequence[str] = ()) -> FinetuneConfig:
    """Settings to resume with: those of the start.

    Args:
        run: Run in which a fine-tuning was started.
        asked: Overrides, as for a new one; they must not change any setting.

    Raises:
        RunError: No fine-tuning was started, or `asked` differs from its settings.
    """
    recorded = recorded_settings(run)
    raw = recorded.model_dump(mode="json")
    wanted = _for_labels(
        parse_settings(FinetuneConfig, recorded.model_dump(mode="json"), asked, name="finetune")
    )
    changed = sorted(differing_keys(raw, wanted.model_dump(mode="json")))
    if changed:
        raise RunError(
            f"the fine-tuning in '{run.path}' was started with other values of "
            f"{', '.join(changed)}",
            hint="remove them to resume it, or remove --resume to start a new one",
        )
    return recorded
