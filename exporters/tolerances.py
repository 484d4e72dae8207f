"""What a conversion may lose, by precision: the tolerance table of verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TOLERANCES", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """What a conversion may lose; None does not check a figure.

    Args:
        relative: Largest error, as a part of the largest reference value.
        cosine: Lowest cosine similarity between an image's outputs on the two sides. Images whose
            outputs are close to zero have no direction and are skipped. With `noise` set, it is
            checked only when the images are too few for a spread.
        top1: Lowest share of images (pixels, confident anchors) that keep their best class. A
            change between classes whose margin is within `tie` counts as kept.
        iou: Lowest mean overlap of label maps, or of confident anchors' boxes.
        noise: Largest root mean square error over all images, as a part of the output's spread.
        worst: The same for the image with the largest error.
        shift: Largest part of it that is the same for every image: rounding averages out over
            images, a wrong bias or a missing layer does not.
        tie: Margin between two classes that is rounding, as a part of the output's spread. Changes
            that all go the same way are not rounding and count in full.

    An output's spread is how far it departs from its mean over all images, per class or channel.
    The answer lies in that spread: values that are the same for every image carry no information.
    """

    relative: float | None
    cosine: float
    top1: float
    iou: float = 0.0
    noise: float | None = None
    worst: float | None = None
    shift: float | None = None
    tie: float = 0.0


# fp32 differs by rounding alone. Half precision has 11 bits, and errors add up over depth. INT8
# spreads its error unevenly, so a single worst value means little; docs/proof.md has the figures
# of good and of damaged networks that its bounds lie between.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(relative=1e-4, cosine=0.99999, top1=0.99, iou=0.99, tie=1e-3),
    # TensorRT computes fp32 in TF32 where the GPU has it: products of 11 bits, sums of 24. Emulated
    # on five CNNs, that is an error of 4e-4 to 9e-4.
    "tf32": Tolerance(relative=5e-3, cosine=0.9999, top1=0.99, iou=0.98, tie=5e-3),
    "fp16": Tolerance(relative=3e-2, cosine=0.999, top1=0.98, iou=0.95, tie=2e-2),
    "int8": Tolerance(
        relative=None,
        cosine=0.97,
        top1=0.95,
        iou=0.80,
        noise=0.35,
        worst=0.75,
        shift=0.15,
        tie=0.5,
    ),
}
