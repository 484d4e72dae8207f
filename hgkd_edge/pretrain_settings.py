"""The recipe's `teacher.pretrain`: how a teacher is trained on images without labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hgkd_edge.settings import Section

__all__ = ["IbotConfig", "PretrainConfig"]


class IbotConfig(Section):
    """Self-distillation: two global views, one of them masked by blocks, and small local views.

    `crop_scale` and `local_crop_scale` are shares of the image's area. `mask_ratio` is the smallest
    and largest share of masked patches. `momentum` and `temperature` belong to the moving average
    that the network learns from. The defaults are the paper's (arXiv 2111.07832), except fewer
    `prototypes` and `local_crops`.
    """

    prototypes: Annotated[int, Field(ge=2)] = 2048
    shared_head: bool = True
    crop_scale: tuple[float, float] = (0.25, 1.0)
    local_crops: Annotated[int, Field(ge=0)] = 2
    local_crop_scale: tuple[float, float] = (0.05, 0.25)
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.996
    temperature: Annotated[float, Field(gt=0)] = 0.07

    @field_validator("crop_scale", "local_crop_scale", "mask_ratio")
    @classmethod
    def _ranges_rise(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must hold 0 < low <= high <= 1")
        return value


class PretrainConfig(Section):
    """How `teacher.weights: pretrain` makes a teacher: without labels, then optionally with them.

    `objective`: `mae` reconstructs the pixels of masked patches; `ibot` distills the network into
    itself. `label_epochs` > 0 adds intermediate fine-tuning with the labels of the training images.
    `mask_ratio`, `decoder_width` and `decoder_depth` belong to `mae`.
    """

    objective: Literal["mae", "ibot"] = "mae"
    epochs: Annotated[int, Field(gt=0)] = 400
    label_epochs: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(gt=0)] = 256
    lr: Annotated[float, Field(gt=0)] = 6e-4
    label_lr: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    decoder_width: Annotated[int, Field(gt=0, multiple_of=32)] = 128  # heads are 32 wide
    decoder_depth: Annotated[int, Field(gt=0)] = 2
    ibot: IbotConfig = IbotConfig()

    @model_validator(mode="after")
    def _settings_are_of_the_objective(self) -> PretrainConfig:
        mae = ("mask_ratio", "decoder_width", "decoder_depth")
        names = mae if self.objective == "ibot" else ("ibot",)
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with objective '{self.objective}'")
        if self.objective == "ibot" and self.batch_size < 2:
            raise ValueError("objective 'ibot' compares images: use a batch_size of at least 2")
        return self

    @property
    def effective(self) -> dict[str, Any]:
        """The settings that change the result."""
        others = {"objective", "ibot"}  # not part of the key of masked autoencoders trained before
        if self.objective == "ibot":
            others = {"mask_ratio", "decoder_width", "decoder_depth"}
        return self.model_dump(exclude=others)
