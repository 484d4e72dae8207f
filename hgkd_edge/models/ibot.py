"""iBOT: pre-trains a teacher from images by self-distillation.

Zhou et al. 2021, arXiv 2111.07832: a student sees two views of an image, each partly masked or
whole. It predicts its own moving average's output, the teacher: the class token of the other
view, and the masked patch tokens of the same view. Losses and projection heads are from the library
`lightly`.

Two measures keep small batches and short trainings from collapsing to one class token for all
images: DINOv2's KoLeo loss, which spreads the class tokens of a batch, and centers initialized with
the first batch's mean. With centers starting at zero, all scores first move to the same prototypes.
"""

from __future__ import annotations

import copy
import math
import warnings
from types import SimpleNamespace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.errors import MissingPackageError
from hgkd_edge.models.vit import encode_masked

__all__ = ["OnlineTokenizer", "require_lightly"]

HIDDEN, BOTTLENECK = 512, 64  # widths of the head, as in lightly's examples
COLD = 0.04  # the teacher's temperature at the start
WARM_UP = 0.1  # share of the training during which the temperature rises
STUDENT_TEMPERATURE, CENTER_MOMENTUM = 0.1, 0.9
SPREADING = 0.1  # weight of the KoLeo loss, as in DINOv2 (arXiv 2304.07193)


def require_lightly() -> SimpleNamespace:
    """The parts of `lightly` that are used, by their names there.

    Raises:
        MissingPackageError: `lightly` is not installed.
    """
    try:
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
        from lightly.models.modules.center import center_mean
        from lightly.models.modules.heads import DINOProjectionHead
    except ImportError as error:
        raise MissingPackageError(
            "teacher.pretrain.objective 'ibot'", extra="ibot", package="lightly"
        ) from error
    return SimpleNamespace(
        DINOLoss=DINOLoss,
        DINOProjectionHead=DINOProjectionHead,
        IBOTPatchLoss=IBOTPatchLoss,
        KoLeoLoss=KoLeoLoss,
        center_mean=center_mean,
    )


class Branch(nn.Module):
    """A Transformer with heads that map its tokens to scores of K prototypes.

    Args:
        encoder: The Transformer; it must have a class token.
        prototypes: K.
        shared_head: One head for class and patch tokens, as in the paper, or separate heads.
    """

    def __init__(self, encoder: VisionTransformer, *, prototypes: int, shared_head: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_head = _head(encoder.embed_dim, prototypes)
        self.patch_head = self.class_head if shared_head else _head(encoder.embed_dim, prototypes)

    def forward(
        self, images: Tensor, masked: Tensor, mask_token: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the class tokens and of the patch tokens at masked positions.

        Args:
            images: float [B, 3, H, W].
            masked: bool [B, N], the positions to score.
            mask_token: float [1, 1, D], input at masked positions; None shows the image.

        Returns:
            float32 [B, K], float32 [masked places, K], and the class tokens float32 [B, D].
        """
        hidden = None if mask_token is None else masked
        tokens = encode_masked(self.encoder, images, hidden, mask_token)  # [B, prefix + N, D]
        patches = tokens[:, self.encoder.num_prefix_tokens :][masked]  # [masked places, D]
        classes = tokens[:, 0]
        scores = self.class_head(classes).float(), self.patch_head(patches).float()
        return *scores, classes.float()


class OnlineTokenizer(nn.Module):
    """A student, and its moving average (the teacher) that it learns from.

    Everything that changes with time is either in parameters and buffers (the teacher, the centers
    of its scores) or a function of the progress (momentum, temperature), so a checkpoint holds all
    of it.

    Args:
        encoder: The Transformer to pre-train, with a class token; `num_classes=0`.
        prototypes: Number of prototypes that tokens are assigned to.
        shared_head: One head for class and patch tokens, or separate heads.
        momentum: Initial momentum of the teacher's average; it rises to 1 along a cosine.
        temperature: Temperature of the teacher's scores after the warm-up.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        prototypes: int,
        shared_head: bool,
        momentum: float,
        temperature: float,
    ) -> None:
        super().__init__()
        lightly = require_lightly()
        self.momentum, self.temperature = momentum, temperature
        self.student = Branch(encoder, prototypes=prototypes, shared_head=shared_head)
        # Heads with weight normalization cannot be deep-copied.
        self.teacher = Branch(
            copy.deepcopy(encoder), prototypes=prototypes, shared_head=shared_head
        )
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        settings = {"student_temp": STUDENT_TEMPERATURE, "center_momentum": CENTER_MOMENTUM}
        self.class_loss = lightly.DINOLoss(prototypes, **settings)
        self.patch_loss = lightly.IBOTPatchLoss(prototypes, **settings)
        self.spreading_loss = lightly.KoLeoLoss()

    def forward(
        self, views: Tensor, visible: Tensor, local_views: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """Move the teacher toward the student, then compare their outputs for the views.

        Args:
            views: float [B, 2, 3, H, W], two global views of every image, normalized.
            visible: bool [B, 2, h, w]; something is masked in at least one view.
            local_views: float [B, L, 3, H_local, W_local]; L may be 0.
            progress: Share of the training that is done, in [0, 1).

        Returns:
            `loss`, its terms, and `spread`: the standard deviation of the teacher's class tokens
            (normalized to unit length) over the batch, relative to that of random directions. Near
            0, all images look the same to the teacher: it has collapsed.
        """
        if self.training:
            self._move_teacher(progress)
        temperature = self._temperature(progress)
        images = views.transpose(0, 1).flatten(0, 1)  # [2B, 3, H, W], first views first
        masked = ~visible.transpose(0, 1).flatten(0, 1)  # [2B, h, w]
        places = masked.flatten(1)  # [2B, N]
        with torch.no_grad():
            targets, patch_targets, seen = self.teacher(images, places, None)
        if self.training and progress == 0:
            self._center(targets, patch_targets)
        scores, patch_scores, classes = self.student(images, places, self.mask_token)
        local_scores = self._local_scores(local_views)
        with torch.autocast(images.device.type, enabled=False):  # sums of K small shares
            terms = {
                "class_loss": self.class_loss(
                    list(targets.chunk(2)),
                    [*scores.chunk(2), *local_scores],
                    teacher_temp=temperature,
                ),
                "patch_loss": self.patch_loss(
                    patch_targets, patch_scores, masked, teacher_temp=temperature
                ),
                "koleo_loss": sum(map(self.spreading_loss, classes.chunk(2))),
            }
        loss = terms["class_loss"] + terms["patch_loss"] + SPREADING * terms["koleo_loss"]
        spread = F.normalize(seen, dim=1).std(dim=0).mean() * seen.shape[1] ** 0.5
        return {"loss": loss, **terms, "spread": spread}

    def train(self, mode: bool = True) -> OnlineTokenizer:
        """The teacher stays in evaluation mode, without dropped layers."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _local_scores(self, local_views: Tensor) -> tuple[Tensor, ...]:
        """The student's scores of the class token of every local view, [B, K] each."""
        count = local_views.shape[1]
        if count == 0:
            return ()
        images = local_views.transpose(0, 1).flatten(0, 1)  # [L*B, 3, H_local, W_local]
        classes = encode_masked(self.student.encoder, images)[:, 0]
        return self.student.class_head(classes).float().chunk(count)

    @torch.no_grad()
    def _move_teacher(self, progress: float) -> None:
        momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        torch._foreach_lerp_(
            list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum
        )

    @torch.no_grad()
    def _center(self, targets: Tensor, patch_targets: Tensor) -> None:
        """Initialize the centers with the means of these scores, over all processes."""
        mean = require_lightly().center_mean
        self.class_loss.center.copy_(mean(targets, dim=(0,))[None])
        self.patch_loss.center.center.copy_(mean(patch_targets, dim=(0,)))

    def _temperature(self, progress: float) -> float:
        """Temperature of the teacher's scores: rises linearly, then stays constant."""
        cold = min(COLD, self.temperature)
        return cold + (self.temperature - cold) * min(1.0, progress / WARM_UP)


def _head(width: int, prototypes: int) -> nn.Module:
    with warnings.catch_warnings():
        # lightly uses a form of weight normalization that torch has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return require_lightly().DINOProjectionHead(
            width, hidden_dim=HIDDEN, bottleneck_dim=BOTTLENECK, output_dim=prototypes
        )
