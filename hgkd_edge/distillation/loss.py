"""The distillation loss: compares a student's prediction with the teacher's targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.augment import normalize
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.student import Prediction, Student
from hgkd_edge.models.vit import patches_of

__all__ = ["DistillationLoss", "StudentWithLoss"]


@dataclass(frozen=True)
class DistillationLoss:
    """How and where prediction and targets are compared; it has no trainable weights.

    Attributes:
        target: Distance per token: `smooth_l1`, `mse` or `cosine`.
        where: Tokens that count: `all`, `masked` or `visible`.
        feature_weight: Weight of the mean token distance; 0: targets are not used.
        pixel_weight: Weight of the masked tokens' pixels (SparK, arXiv 2301.03580).
        weigh_sites: Multiply every token's distance by the mean square of its target, relative to
            the mean over the tokens that count.
        embedding_weight: Weight of 1 - cosine of the whole-image row.
    """

    target: str = "smooth_l1"
    where: str = "all"
    feature_weight: float = 1.0
    pixel_weight: float = 0.0
    weigh_sites: bool = False
    embedding_weight: float = 0.0

    def __call__(
        self, prediction: Prediction, targets: Tensor, images: Tensor, visible: Tensor
    ) -> dict[str, Tensor]:
        """Scalars of one batch; no control flow depends on the value of a tensor.

        Args:
            prediction: The student's prediction.
            targets: float [B, N, D], the teacher's tokens; [B, N + 1, D] with its embedding, last.
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, N], True = visible.
        """
        predicted, pixels, embedding = prediction
        scalars = {"loss": torch.zeros((), device=images.device)}
        if self.feature_weight:
            predicted = predicted.float()  # [B, N, D]
            wanted = targets if embedding is None else targets[:, :-1]
            chosen = self._chosen(visible)  # [B, N]
            cosine = F.cosine_similarity(predicted, wanted, dim=-1)  # [B, N]
            distance = self._distance(predicted, wanted, cosine)
            if self.weigh_sites:
                size = wanted.float().square().mean(dim=-1)  # [B, N]; cached targets are float16
                distance = distance * size / _mean(size, chosen).clamp(min=1e-6)
            scalars["loss"] = self.feature_weight * _mean(distance, chosen)
            scalars["cosine"] = _mean(cosine, chosen).detach()
        if embedding is not None:
            close = F.cosine_similarity(embedding.float(), targets[:, -1], dim=-1).mean()
            scalars["loss"] = scalars["loss"] + self.embedding_weight * (1 - close)
            scalars["embedding_cosine"] = close.detach()
        if pixels is not None:
            pixel_loss = _mean(_pixel_distance(pixels, images), ~visible)
            scalars["loss"] = scalars["loss"] + self.pixel_weight * pixel_loss
        return scalars

    def _distance(self, predicted: Tensor, wanted: Tensor, cosine: Tensor) -> Tensor:
        """The distance of every token, float [B, N]."""
        if self.target == "cosine":
            return 1 - cosine
        between = F.smooth_l1_loss if self.target == "smooth_l1" else F.mse_loss
        return between(predicted, wanted, reduction="none").mean(dim=-1)

    def _chosen(self, visible: Tensor) -> Tensor:
        choices = {"visible": visible, "masked": ~visible, "all": torch.ones_like(visible)}
        return choices[self.where]


class StudentWithLoss(nn.Module):
    """The module that the engine trains. If features have no weight, their head is frozen.

    Args:
        student: Predicts teacher tokens from visible patches.
        loss: Compares its prediction with the teacher's targets.
        mean: Per-channel mean that the student's images are normalized by.
        std: Per-channel standard deviation, likewise.
    """

    def __init__(
        self,
        student: Student,
        loss: DistillationLoss,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.student = student
        self.loss = loss
        self.mean, self.std = mean, std
        student.head.requires_grad_(loss.feature_weight > 0)

    def forward(
        self, images: Tensor, visible: Tensor, targets: Tensor, per_image: int | None = None
    ) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, h, w], True = visible.
            targets: float [B, R, D], the teacher's targets.
            per_image: Number of visible patches in every image, if it is the same and known.

        Returns:
            `loss`; with a feature weight also the `cosine` of prediction and target; with an
            embedding weight also `embedding_cosine`.
        """
        prediction = self.student(normalize(images, self.mean, self.std), visible, per_image)
        stride = self.student.encoder.reductions[0]
        tokens = upsample_mask(visible, [side // stride for side in images.shape[-2:]]).flatten(1)
        return self.loss(prediction, targets, images, tokens)


def _pixel_distance(pixels: Tensor, images: Tensor) -> Tensor:
    """SparK's target, pixels normalized within each patch: distance of every token, [B, N]."""
    side = round((pixels.shape[-1] // images.shape[1]) ** 0.5)
    target = patches_of(images, side)  # [B, N, side*side*3]
    target = F.layer_norm(target, target.shape[-1:])
    return F.mse_loss(pixels.float(), target, reduction="none").mean(dim=-1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of values f[B, N] over the chosen tokens, bool [B, N].

    Uses weights instead of an index: the backward pass of indexing by a mask is slow on a CPU.
    """
    weights = chosen.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1)
