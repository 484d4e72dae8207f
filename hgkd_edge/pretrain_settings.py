"""The recipe's `teacher.pretrain`: how a teacher is trained on images without labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hgkd_edge.yaml_settings import Section

__all__ = ["IbotConfig", "PretrainConfig"]


class IbotConfig(Section):
    """Self-distillation: two global views, one of them masked by blocks, and small local views.

    The defaults are the paper's (arXiv 2111.07832), except fewer `prototypes` and `local_crops`.
    """

    prototypes: Annotated[int, Field(ge=2)] = 2048
    """Number of prototypes that tokens are assigned to."""
    shared_head: bool = True
    """One head for class and patch tokens."""
    crop_scale: tuple[float, float] = (0.25, 1.0)
    """Area of the two global views, as shares of the image; replaces `data.crop_scale`."""
    local_crops: Annotated[int, Field(ge=0)] = 2
    """Number of views of half the side, class token only; 0: none."""
    local_crop_scale: tuple[float, float] = (0.05, 0.25)
    """Area of the local views, as shares of the image."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of masked patches in one of the two global views, masked in
    blocks."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.996
    """Momentum of the moving average; rises to 1."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the moving average's scores; rises from 0.04 during the first tenth of
    training."""

    @field_validator("crop_scale", "local_crop_scale", "mask_ratio")
    @classmethod
    def _ranges_rise(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must hold 0 < low <= high <= 1")
        return value


class PretrainConfig(Section):
    """How `teacher.weights: pretrain` trains a teacher: without labels, then optionally with."""

    objective: Literal["mae", "ibot"] = "mae"
    """`mae`: reconstruct the pixels of masked patches (arXiv 2111.06377). `ibot`: predict the
    output of the network's own moving average (arXiv 2111.07832). `ibot` needs `pip install
    "hgkd-edge[ibot]"`, a class token, and at least 2 images per process and batch."""
    epochs: Annotated[int, Field(gt=0)] = 400
    """Epochs without labels."""
    label_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of fine-tuning with labels afterwards."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """Global batch size."""
    lr: Annotated[float, Field(gt=0)] = 6e-4
    """Learning rate without labels."""
    label_lr: Annotated[float, Field(gt=0)] = 5e-4
    """Learning rate with labels."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of masked patches (`mae` only)."""
    decoder_width: Annotated[int, Field(gt=0, multiple_of=32)] = 128  # heads are 32 wide
    """Width of the decoder, a multiple of 32 (`mae` only)."""
    decoder_depth: Annotated[int, Field(gt=0)] = 2
    """Blocks of the decoder (`mae` only)."""
    ibot: IbotConfig = IbotConfig()
    """Settings of `objective: ibot`."""

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
    def effective(self) -> dict[str, object]:
        """The settings that change the result."""
        others = {"objective", "ibot"}  # not part of the key of masked autoencoders trained before
        if self.objective == "ibot":
            others = {"mask_ratio", "decoder_width", "decoder_depth"}
        return self.model_dump(exclude=others)
