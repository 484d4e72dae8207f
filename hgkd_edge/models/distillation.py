"""The student with its loss: what distillation trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.augment import normalize
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.student import Student
from hgkd_edge.models.vit import patches_of
from hgkd_edge.recipe import LossConfig

__all__ = ["Distillation"]


class Distillation(nn.Module):
    """The student and its loss: what the engine trains.

    Where features have no weight, their head is frozen and their targets are not looked at.

    Args:
        student: Predicts teacher tokens from visible patches.
        loss: How and where prediction and target are compared.
        mean: Per-channel mean that the student's images are normalised by.
        std: Per-channel standard deviation, likewise.
    """

    def __init__(
        self, student: Student, loss: LossConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.student = student
        self.config = loss
        self.mean, self.std = mean, std
        student.head.requires_grad_(loss.feature_weight > 0)

    def forward(
        self, images: Tensor, visible: Tensor, targets: Tensor, per_image: int | None = None
    ) -> dict[str, Tensor]:
        """Loss of one batch; makes no decision by the value of a tensor.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, h, w], True = visible.
            targets: float [B, N, D], the teacher's tokens; [B, N + 1, D] with its embedding, last.
            per_image: Number of visible patches in every image, if it is the same and known.

        Returns:
            `loss`; where features have a weight the `cosine` of prediction and target, and where
            the embedding has one its `embedding_cosine`.
        """
        view = normalize(images, self.mean, self.std)
        predicted, pixels, embedding = self.student(view, visible, per_image)
        scalars = {"loss": torch.zeros((), device=images.device)}
        if self.config.feature_weight:
            predicted = predicted.float()  # [B, N, D]
            wanted = targets if embedding is None else targets[:, :-1]
            chosen = self._where(visible, images)  # [B, N]
            cosine = F.cosine_similarity(predicted, wanted, dim=-1)  # [B, N]
            distance = _mean(self._distance(predicted, wanted, cosine), chosen)
            scalars["loss"] = self.config.feature_weight * distance
            scalars["cosine"] = _mean(cosine, chosen).detach()
        if embedding is not None:
            close = F.cosine_similarity(embedding.float(), targets[:, -1], dim=-1).mean()
            scalars["loss"] = scalars["loss"] + self.config.embedding_weight * (1 - close)
            scalars["embedding_cosine"] = close.detach()
        if pixels is not None:
            masked = ~self._tokens(visible, images)
            pixel_loss = _mean(self._pixel_distance(pixels, images), masked)
            scalars["loss"] = scalars["loss"] + self.config.pixel_weight * pixel_loss
        return scalars

    def _distance(self, predicted: Tensor, wanted: Tensor, cosine: Tensor) -> Tensor:
        """Of every token, float [B, N]."""
        if self.config.target == "cosine":
            distance = 1 - cosine
        else:
            between = F.smooth_l1_loss if self.config.target == "smooth_l1" else F.mse_loss
            distance = between(predicted, wanted, reduction="none").mean(dim=-1)
        if self.config.cosine_weight:
            distance = distance + self.config.cosine_weight * (1 - cosine)
        return distance

    def _where(self, visible: Tensor, images: Tensor) -> Tensor:
        tokens = self._tokens(visible, images)
        choices = {"visible": tokens, "masked": ~tokens, "all": torch.ones_like(tokens)}
        return choices[self.config.where]

    def _tokens(self, visible: Tensor, images: Tensor) -> Tensor:
        """Visibility of every token, bool [B, N]."""
        stride = self.student.encoder.reductions[0]
        grid = [side // stride for side in images.shape[-2:]]
        return upsample_mask(visible, grid).flatten(1)

    def _pixel_distance(self, pixels: Tensor, images: Tensor) -> Tensor:
        """SparK's target, pixels normalised within each patch: distance of every token, [B, N]."""
        target = patches_of(images, self.student.encoder.reductions[0])  # [B, N, side*side*3]
        target = F.layer_norm(target, target.shape[-1:])
        return F.mse_loss(pixels.float(), target, reduction="none").mean(dim=-1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of values f[B, N] over the chosen tokens, bool [B, N].

    Weights instead of an index: the backward pass of indexing by a mask is slow on a CPU.
    """
    weights = chosen.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)
