"""The frozen Transformer: made, loaded, and asked for its representation of an image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.console import console
from hgkd_edge.data.augment import IMAGENET_MEAN, IMAGENET_STD, normalize
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import create_timm_model
from hgkd_edge.models.checkpoint import fitting_weights
from hgkd_edge.models.vit import encode_visible
from hgkd_edge.parsing import MAX_SETTINGS_BYTES, parse_json
from hgkd_edge.recipe import TeacherConfig
from hgkd_edge.sparse.visible import indices

__all__ = [
    "BUNDLED_TEACHER",
    "Teacher",
    "create_vit",
    "forbids_commerce",
    "load_vit_weights",
    "require_plain_vit",
    "save_vit_weights",
    "teacher_licence",
    "teacher_patch",
]

BUNDLED_TEACHER = Path(__file__).parent.parent / "data" / "bundled" / "demo_teacher.safetensors"
RESEARCH_ONLY = frozenset({"apple-amlr", "seer-license"})  # their texts say so, not their names
NORMALISATION = "hgkd_edge.normalisation"  # in the metadata of weights that were trained here


# A channel's spread at a place is at least this share of its spread over all places. On ordinary
# photos it is .36 and more in every channel of a ViT-S/14, .87 and more of the bundled teacher.
SPREAD_FLOOR = 0.3
IMAGE_FLOOR = 0.03  # of the row of the whole image: a mean over places spreads less by itself


class Teacher(nn.Module):
    """Targets for the student: patch tokens, layer-normalised without affine (design: loss).

    The targets of an image are R rows: its N patch tokens and, with `embedding`, one vector for the
    whole image: the class token, or the mean of the patch tokens where there is no class token.

    Frozen: in evaluation mode and without gradients, whatever the student does.

    Attributes:
        width: Channels D of the targets.
        center: Mean of every row, float [R, D], zero unless standardised.
        spread: Standard deviation of every channel, float [R, D], one unless standardised; the same
            for all patch tokens.

    Args:
        vit: A timm Transformer of plain patch tokens.
        layers: `last`, or indices of blocks whose normalised tokens are combined.
        size: Height and width in pixels that it sees.
        combine: `mean` of the blocks' tokens, or `concat`: one block's channels after the other's.
        embedding: Whether targets hold the row of the whole image.
    """

    def __init__(
        self,
        vit: nn.Module,
        *,
        layers: str | list[int],
        size: tuple[int, int],
        combine: str = "mean",
        embedding: bool = False,
    ) -> None:
        super().__init__()
        self.center: Tensor
        self.spread: Tensor
        self.vit = vit.eval().requires_grad_(False)
        self.size = size
        self.grid = tuple(side // teacher_patch(vit) for side in size)
        self.indices = _block_indices(vit, layers)
        self.combine, self.embedding = combine, embedding
        blocks = len(self.indices) if combine == "concat" else 1
        self.width: int = blocks * vit.embed_dim  # type: ignore[operator,assignment]
        rows = self.grid[0] * self.grid[1] + embedding
        config = getattr(vit, "pretrained_cfg", {})
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        self.register_buffer("center", torch.zeros(rows, self.width))
        self.register_buffer("spread", torch.ones(rows, self.width))

    @torch.no_grad()
    def standardize(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """From now on, take the mean token of every place from targets, and even out channels.

        Most of what a masked autoencoder's tokens hold is where they are: a student that has
        learned the mean token looks good and knows nothing. A channel is divided by no less than a
        share of its spread over all places and images, so that views that are nearly equal at every
        place do not make noise the target.

        Args:
            batches: What the statistics are taken from, as for `moments`: views as the student will
                see them. Those of whole photos would miss how much a crop changes.
        """
        center, squares = self.moments(batches)
        places = self.grid[0] * self.grid[1]
        within, total = self._spread_of(center, squares)
        tokens = within.clamp(min=SPREAD_FLOOR**2 * total)
        variance = (squares - center.square())[places:]  # of the row of the whole image
        image = variance.clamp(min=IMAGE_FLOOR**2 * total)
        variance = torch.cat([tokens.expand(places, -1), image])
        self.center, self.spread = center, variance.clamp(min=1e-6).sqrt()

    @torch.no_grad()
    def between_images(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> float:
        """How much of the tokens' spread lies between images at one place; median over channels.

        From 0 (all images are equal) to 1.

        Args:
            batches: As for `moments`: whole images. Crops of equal images would differ.
        """
        within, total = self._spread_of(*self.moments(batches))
        return (within / total.clamp(min=1e-12)).clamp(0, 1).sqrt().median().item()

    def _spread_of(self, center: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of every channel of the patch tokens, float [D]: at one place, and over all."""
        places = self.grid[0] * self.grid[1]
        center, squares = center[:places], squares[:places]
        total = squares.mean(dim=0) - center.mean(dim=0).square()
        return (squares - center.square()).mean(dim=0), total

    @torch.no_grad()
    def moments(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
        """Mean and mean square of every row of the targets, float [R, D] each.

        Args:
            batches: Images float [B, 3, H, W] in [0, 1] and their visible tokens, bool [B, N]; None
                for whole images.
        """
        total, squares = torch.zeros_like(self.center), torch.zeros_like(self.center)
        count = torch.zeros_like(self.center[:, :1])  # [R, 1]
        for images, visible in batches:
            targets = self.targets(images, visible)  # [B, R, D], zero where not visible
            if visible is None:
                count += len(images)
            else:
                count[: visible.shape[1]] += visible.sum(dim=0)[:, None]
                count[visible.shape[1] :] += len(images)
            total += targets.sum(dim=0)
            squares += targets.square().sum(dim=0)
        count = count.clamp(min=1)
        return total / count, squares / count

    def targets(
        self, images: Tensor, visible: Tensor | None, per_image: int | None = None
    ) -> Tensor:
        """Targets from the visible tokens, bool [B, N], or from whole images: [B, R, D]."""
        if visible is None:
            return self(images)
        return self.forward_visible(images, visible, per_image)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Targets from whole images.

        Args:
            images: float [B, 3, H, W] in [0, 1], of any size.

        Returns:
            float32 [B, R, D], tokens on the row-major grid, zero mean and unit variance over D; if
            standardised, over the images that the statistics are from.
        """
        pooled = self.embedding and _has_class_token(self.vit)
        layers = self.vit.forward_intermediates(  # type: ignore[operator]
            self._prepare(images),
            indices=self.indices,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=pooled,
        )
        rows = [self._rows(*layer) if pooled else self._rows(layer) for layer in layers]
        return (self._combined(rows) - self.center) / self.spread

    @torch.no_grad()
    def forward_visible(
        self, images: Tensor, visible: Tensor, per_image: int | None = None
    ) -> Tensor:
        """Targets from visible tokens only, as a masked autoencoder's encoder sees them.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, N] on the token grid, as many visible in every image.
            per_image: How many, if that is known: then nothing waits for the device.

        Returns:
            float32 [B, R, D], zero at masked tokens; the row of the whole image is what the visible
            tokens make of it.
        """
        if per_image is None:
            per_image = int(visible[0].sum())
        keep = indices(visible, per_image)  # [B, N_visible]
        tokens = encode_visible(self.vit, self._prepare(images), keep)  # type: ignore[arg-type]
        prefix = self.vit.num_prefix_tokens
        pooled = self.embedding and _has_class_token(self.vit)
        rows = self._rows(tokens[:, prefix:], tokens[:, :prefix] if pooled else None)
        if self.embedding:  # the last row is there whatever is visible
            keep = torch.cat([keep, torch.full_like(keep[:, :1], visible.shape[1])], dim=1)
        rows = (rows - self.center[keep]) / self.spread[keep]
        targets = rows.new_zeros(len(images), len(self.center), self.width)
        return targets.scatter(1, keep[..., None].expand(-1, -1, self.width), rows)

    def _rows(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        """A block's tokens [B, N, D], and the image's row if wanted, normalised: [B, R, D]."""
        rows = F.layer_norm(tokens.float(), tokens.shape[-1:])
        if not self.embedding:
            return rows
        image = rows.mean(dim=1) if prefix is None else prefix[:, 0].float()  # [B, D]
        return torch.cat([rows, F.layer_norm(image, image.shape[-1:])[:, None]], dim=1)

    def _combined(self, blocks: list[Tensor]) -> Tensor:
        """The targets of one image from those of its blocks."""
        if self.combine == "concat":
            return torch.cat(blocks, dim=-1)
        return torch.stack(blocks).mean(dim=0)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a frozen teacher has no training mode."""
        return super().train(False)

    def _prepare(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return normalize(images, self.mean, self.std)


def create_vit(
    config: TeacherConfig, *, size: tuple[int, int] | None = None, pretrained: bool = False
) -> nn.Module:
    """The teacher's network.

    Args:
        config: The recipe's `teacher` section.
        size: Height and width in pixels that it shall see; None keeps the published size.
        pretrained: Load the hub's weights.

    Raises:
        RecipeError: Unknown to timm, or not a Transformer of plain patch tokens.
    """
    own: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if size is not None:
        own["img_size"] = size
    try:
        vit = create_timm_model("teacher.name", config.name, config.args, **own)
    except OSError as error:  # huggingface_hub and urllib raise kinds of OSError when offline
        raise RecipeError(
            f"teacher.name = '{config.name}': its weights cannot be downloaded "
            f"({type(error).__name__})",
            hint="with no network use teacher.weights 'path' (a local file) or 'pretrain'",
        ) from error
    parts = ("patch_embed", "forward_intermediates", "blocks", "num_prefix_tokens")
    if not (all(hasattr(vit, part) for part in parts) and _has_square_patches(vit)):
        raise RecipeError(
            f"teacher.name = '{config.name}': is not a Vision Transformer of plain patch tokens",
            hint="use a ViT, BEiT, DINOv2, EVA or CLIP image tower of timm",
        )
    if config.view == "visible" and not isinstance(vit, VisionTransformer):
        raise RecipeError(
            f"teacher.view = 'visible': '{config.name}' cannot run on a part of its tokens",
            hint="use view 'full', or a plain ViT such as vit_base_patch16_224.mae",
        )
    if config.weights == "pretrain":
        plain = require_plain_vit(vit, config.name)
        if config.pretrain.objective == "ibot" and plain.cls_token is None:
            raise RecipeError(
                f"teacher.name = '{config.name}': has no class token, which iBOT learns from",
                hint="set teacher.args.class_token to true, or teacher.pretrain.objective to mae",
            )
    _block_indices(vit, config.layers)
    return vit


def require_plain_vit(vit: nn.Module, name: str) -> VisionTransformer:
    """The same network, which can be pre-trained here.

    Raises:
        RecipeError: It is not a plain timm VisionTransformer.
    """
    if not isinstance(vit, VisionTransformer):
        raise RecipeError(
            f"teacher.name = '{name}': cannot be pre-trained here",
            hint="weights 'pretrain' takes timm's plain ViTs, such as vit_tiny_patch16_224",
        )
    return vit


def _block_indices(vit: nn.Module, layers: str | list[int]) -> list[int]:
    """Indices of the blocks that `teacher.layers` names.

    Raises:
        RecipeError: The teacher has fewer blocks.
    """
    depth = len(vit.blocks)  # type: ignore[arg-type]
    indices = [depth - 1] if layers == "last" else [int(i) for i in layers]
    if not all(-depth <= i < depth for i in indices):
        raise RecipeError(
            f"teacher.layers = {layers}: the teacher has blocks 0 to {depth - 1}",
            hint=f"such as [{depth - 1}]",
        )
    return sorted({index % depth for index in indices})  # as timm returns them


def _has_class_token(vit: nn.Module) -> bool:
    """Whether the first of its prefix tokens is a class token; the others are registers."""
    return bool(vit.num_prefix_tokens) and getattr(vit, "cls_token", None) is not None


def _has_square_patches(vit: nn.Module) -> bool:
    sides = getattr(vit.patch_embed, "patch_size", None)
    return isinstance(sides, tuple) and len(set(sides)) == 1


def teacher_patch(vit: nn.Module) -> int:
    """Side in pixels of a teacher's patch."""
    return vit.patch_embed.patch_size[0]  # type: ignore[index,union-attr,return-value]


def teacher_licence(vit: nn.Module) -> str:
    """Licence of the hub's weights as timm states it, '' where it states none."""
    return getattr(vit, "pretrained_cfg", {}).get("license") or ""


def forbids_commerce(licence: str) -> bool:
    """Whether a licence, as timm calls it, forbids commercial use."""
    name = licence.lower()
    return "nc" in name.split("-") or "noncommercial" in name or name in RESEARCH_ONLY


def load_vit_weights(vit: nn.Module, path: Path) -> None:
    """Load a local checkpoint: timm, official MAE, DINO, or safetensors.

    Position embeddings are resampled to the teacher's grid; decoders and heads are skipped.
    Weights that were trained here bring the normalisation of their photos, which takes the place
    of the one that timm knows for the teacher's name.

    Raises:
        RecipeError: The file cannot be read safely, or does not fit the teacher.
    """
    state, origin = fitting_weights(vit, path, key="teacher.path")
    vit.load_state_dict(state)
    if origin:
        console.print(f"teacher: {path.name} holds several networks; loaded '{origin}'")
    known: dict[str, Any] = getattr(vit, "pretrained_cfg", {})
    vit.pretrained_cfg = {**known, **_read_normalisation(path)}  # type: ignore[assignment]


def save_vit_weights(
    vit: nn.Module, path: Path, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Write a teacher that was trained here, with the normalisation of the photos that it saw."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in vit.state_dict().items()}
    normalisation = json.dumps({"mean": mean, "std": std})
    save_file(tensors, path, metadata={"format": "pt", NORMALISATION: normalisation})


def _read_normalisation(path: Path) -> dict[str, Any]:
    """`mean` and `std` that `save_vit_weights` wrote; empty for weights from elsewhere.

    Raises:
        RecipeError: The file's metadata holds something else under their name.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as stored:
        text = (stored.metadata() or {}).get(NORMALISATION)
    if text is None:
        return {}
    try:
        fields = parse_json(text, MAX_SETTINGS_BYTES)
        found = {key: tuple(float(n) for n in fields[key]) for key in ("mean", "std")}
        finite = all(len(n) == 3 and all(map(math.isfinite, n)) for n in found.values())
        if not (finite and min(found["std"]) > 0):
            raise ValueError(text[:80])
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise RecipeError(
            f"teacher.path = '{path}': its metadata gives no usable mean and std",
            hint="train the teacher again: teacher.weights=pretrain",
        ) from error
    return found
