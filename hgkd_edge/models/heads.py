"""Light heads on a backbone's feature maps: a class for every pixel, and boxes.

Both pass the maps through torchvision's feature pyramid (Lin et al. 2017, arXiv 1612.03144).
Segmentation libraries create their encoders by name. Ours are distilled, and may be narrower or
have another stem stride, so the heads are attached to the maps directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops import FeaturePyramidNetwork

from hgkd_edge.models.backbone import BackboneSpec, create_features

__all__ = ["Detector", "Pyramid", "Segmenter", "mean_probability"]

FINEST_BOXES, COARSEST_BOXES = 8, 64  # strides of the maps used to detect boxes
FIRST_DISTANCE = 4.0  # in strides; every map is matched to boxes of up to 8 strides
HEAD_CONVS = 2  # FCOS has 4; with a small backbone they would dominate the cost


class Pyramid(nn.Module):
    """A backbone with a feature pyramid: maps of equal width, with context from coarser maps.

    The width follows the backbone: a quarter of its deepest map's channels, from 64 to 256.

    Args:
        spec: The backbone.
        finest: Skip maps of finer stride.
        coarsest: Add maps up to this stride, each made from the last by a strided convolution.

    Attributes:
        strides: Strides of the maps, finest first.
        out_channels: Width of the maps.
    """

    def __init__(self, spec: BackboneSpec, *, finest: int, coarsest: int = 0) -> None:
        super().__init__()
        self.features = create_features(
            spec.name, stem_stride=spec.stem_stride, args=spec.args, min_stride=finest
        )
        info: Any = self.features.feature_info
        channels = info.channels()
        deepest = {stride: i for i, stride in enumerate(info.reduction())}  # deepest per stride
        self.chosen = list(deepest.values())
        self.strides = list(deepest)
        self.out_channels = min(256, max(64, channels[-1] // 128 * 32))
        self.pyramid = FeaturePyramidNetwork(
            [channels[i] for i in self.chosen], self.out_channels, norm_layer=nn.BatchNorm2d
        )
        self.coarser = nn.ModuleList()
        while self.strides[-1] < coarsest:
            self.strides.append(2 * self.strides[-1])
            self.coarser.append(
                nn.Conv2d(self.out_channels, self.out_channels, 3, stride=2, padding=1)
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images f[B, 3, H, W] -> maps f[B, out_channels, H/s, W/s], finest first."""
        maps = self.features(images)
        levels = list(self.pyramid({str(i): maps[i] for i in self.chosen}).values())
        for conv in self.coarser:
            levels.append(conv(F.relu(levels[-1])))
        return levels


class Segmenter(nn.Module):
    """A class for every pixel: all maps of the pyramid, upsampled to the finest and summed.

    Follows the semantic branch of Kirillov et al. 2019, arXiv 1901.02446, section 3.

    Args:
        spec: The backbone.
        num_classes: Number of classes, including the background.
    """

    def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
        super().__init__()
        self.backbone = Pyramid(spec, finest=spec.stem_stride)
        width = self.backbone.out_channels
        self.head = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, num_classes, kernel_size=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images f[B, 3, H, W] -> logits f[B, classes, H, W]."""
        finest, *coarser = self.backbone(images)
        summed = finest
        for level in coarser:
            summed = summed + _enlarge(level, finest)
        return _enlarge(self.head(summed), images)


class Detector(FCOS):
    """torchvision's FCOS (Tian et al. 2019, arXiv 1904.01355), from tensors to tensors.

    Uses its head, its matching of points to objects and its losses. Omits its resizing of images
    and its non-maximum suppression, so that the network consists of plain operations of fixed
    shape.

    Args:
        spec: The backbone.
        num_classes: Number of classes; not counting the background.
    """

    def __init__(self, spec: BackboneSpec, num_classes: int) -> None:
        backbone = Pyramid(spec, finest=FINEST_BOXES, coarsest=COARSEST_BOXES)
        head = FCOSHead(backbone.out_channels, 1, num_classes, num_convs=HEAD_CONVS)
        # Distances to a box's sides, in strides, pass a ReLU: starting at 0, half of them would not
        # learn.
        nn.init.constant_(head.regression_head.bbox_reg.bias, FIRST_DISTANCE)
        super().__init__(backbone, num_classes, head=head)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The box and scores of every point.

        Args:
            images: Normalized, f[B, 3, H, W].

        Returns:
            Boxes f[B, A, 4] (x1, y1, x2, y2 in pixels) and scores f[B, A, classes] in [0, 1]: the
            geometric mean of class probability and centerness.
        """
        levels = self.backbone(images)
        found = self.head(levels)
        boxes = self.box_coder.decode(found["bbox_regression"], self._points(levels))
        height, width = images.shape[-2:]
        ends = torch.stack([boxes.new_full((), side) for side in (width, height, width, height)])
        boxes = boxes.clamp(min=0).minimum(ends)
        return boxes, mean_probability(found["cls_logits"], found["bbox_ctrness"])

    def losses(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """FCOS's three losses.

        Args:
            images: Normalized, f[B, 3, H, W].
            boxes: f[B, M, 5] of class, x1, y1, x2, y2 in pixels; rows of class -1 are padding.
        """
        levels = self.backbone(images)
        found = {name: value.float() for name, value in self.head(levels).items()}
        points, counts = self._points(levels), [level.shape[2] * level.shape[3] for level in levels]
        targets = [
            {"labels": rows[:, 0].long(), "boxes": rows[:, 1:]}
            for rows in (image[image[:, 0] >= 0] for image in boxes)
        ]
        return self.compute_loss(targets, found, [points] * len(images), counts)

    def _points(self, levels: list[Tensor]) -> Tensor:
        """A square with the stride as side length around the center of every cell, f[A, 4]."""
        squares = []
        for level, stride in zip(levels, self.backbone.strides, strict=True):
            height, width = level.shape[-2:]
            rows, columns = (
                torch.arange(side, device=level.device, dtype=torch.float32) * stride
                for side in (height, width)
            )
            x, y = columns.expand(height, width), rows.view(-1, 1).expand(height, width)
            corner = torch.stack([x, y], dim=-1).flatten(0, 1)  # [rows * columns, 2]
            squares.append(torch.cat([corner, corner + stride], dim=1))
        return torch.cat(squares)


def mean_probability(a: Tensor, b: Tensor) -> Tensor:
    """Geometric mean of two logits' probabilities, sqrt(sigmoid(a) * sigmoid(b)).

    The square root of a product near zero amplifies its rounding: 1e-8 becomes 1e-4. Runtimes also
    disagree on the sigmoid of large negative logits; some kernels return less than zero. So every
    function is evaluated where its slope is small, in fp16 as well: sigmoid(x) = exp(min(x, 0)) /
    (1 + exp(-|x|)).
    """
    exponent = 0.5 * (a.clamp(max=0) + b.clamp(max=0))
    return exponent.exp() / ((1 + (-a.abs()).exp()) * (1 + (-b.abs()).exp())).sqrt()


def _enlarge(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)
