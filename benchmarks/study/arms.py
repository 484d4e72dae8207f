"""The arms of the study, each given as changes to the base recipe, which is H-GKD."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ABLATION",
    "ARMS",
    "CLASS_TOKEN",
    "EQUAL_TIME",
    "ON_REQUEST",
    "REMOVED",
    "SCRATCH",
    "SPARK",
    "STATIC_CAMERA",
    "TEACHERS",
    "Arm",
    "spelled",
]

# Arms whose students are not distilled.
SCRATCH = ("scratch", "scratch, full width")
MAE = ["teacher.pretrain.label_epochs=0"]
PLAIN = ["teacher.standardize=false"]
DENSE = ["mask.ratio=0", "mask.whole_share=0", "loss.where=all"]
# Four updates share each teacher pass; with nothing masked, all four see the same images.
FOUR = ["mask.per_image=4", "train.epochs={half}"]  # half the passes, twice the updates
LONG = ["mask.per_image=4", "train.epochs={long}"]  # ten times the updates
# Sixteen times the weights of the study's student: enough capacity for seeing and predicting.
WIDE = ["student.args.channels=[64, 128, 256, 512]", "student.decoder_width=128"]
# SparK (Tian et al. 2023): pixels of masked patches, normalized within each patch.
SPARK = [
    "loss.feature_weight=0",
    "loss.pixel_weight=1",
    "loss.embedding_weight=0",
    "teacher.cache=0",
    "loss.where=masked",
    "mask.ratio=0.6",
    "mask.whole_share=0",
]

# The teachers, scored by themselves: students cannot be expected to know much more.
# By the mean of their patch tokens, unless by the class token.
CLASS_TOKEN = "teacher, class token"
TEACHERS: dict[str, list[str]] = {"teacher": MAE, "labeled teacher": []}

# (a) to (d) of the comparison; the student, its updates and its fine-tuning are the same in all.
ARMS: dict[str, list[str]] = {
    **TEACHERS,
    "scratch": MAE,  # the student has no teacher; any would do
    "pixels": [*MAE, *SPARK],
    # Plain feature distillation: nothing is masked, so the sparse student is a dense one.
    "dense-features": [*MAE, *PLAIN, *DENSE],
    "dense-features, standardized": [*MAE, *DENSE],
    "h-gkd": MAE,
    # The time saved on teacher passes is spent on updates. Times: docs/lab-notebook.md.
    "dense-features, 4 updates a pass": [*MAE, *PLAIN, *DENSE, *FOUR],
    "h-gkd, 4 masks, twice the updates": [*MAE, *FOUR],
    # Whether masking helps after a student of whole images has learned from its teacher.
    "dense-features, standardized, 4 updates a pass, ten times the updates": [*MAE, *DENSE, *LONG],
    "h-gkd, 4 masks, ten times the updates": [*MAE, *LONG],
    # The student as published.
    "scratch, full width": [*MAE, *WIDE],
    "dense-features, standardized, full width, 4 updates a pass": [*MAE, *DENSE, *WIDE, *FOUR],
    "h-gkd, full width, 4 masks, twice the updates": [*MAE, *WIDE, *FOUR],
    # Upper reference: the teacher has seen the labels of the training images.
    "dense-features, labeled teacher": [*PLAIN, *DENSE],
    "dense-features, 4 updates a pass, labeled teacher": [*PLAIN, *DENSE, *FOUR],
    "h-gkd, labeled teacher": [],
    "h-gkd, 4 masks, twice the updates, labeled teacher": [*FOUR],
}

# One change at a time to "h-gkd".
_CHANGES: dict[str, list[str]] = {
    "none": [],
    "nothing masked": DENSE,
    "nothing masked, 4 updates a pass": [*DENSE, *FOUR],
    "not standardized": PLAIN,
    "ratio 0.25": ["mask.ratio=0.25"],
    "ratio 0.6": ["mask.ratio=0.6"],
    "no whole images": ["mask.whole_share=0"],
    "where visible": ["loss.where=visible"],
    "where masked": ["loss.where=masked", "mask.whole_share=0"],
    "view visible": [
        "teacher.view=visible",
        "teacher.layers=last",
        "teacher.cache=0",
        "loss.where=visible",
        "mask.whole_share=0",
    ],
    "target mse": ["loss.target=mse"],
    "target cosine": ["loss.target=cosine"],
    "2 masks, half the epochs": ["mask.per_image=2", "train.epochs={half}"],
    "4 masks, ratio 0.25, half the epochs": [*FOUR, "mask.ratio=0.25"],
    "4 masks, half the epochs, whole share 0.6": [*FOUR, "mask.whole_share=0.6"],
    "full width": WIDE,
    "nothing masked, full width": [*DENSE, *WIDE],
    "full width, 4 masks, half the epochs": [*WIDE, *FOUR],
    "nothing masked, full width, 4 updates a pass": [*DENSE, *WIDE, *FOUR],
    "decoder half as wide": ["student.decoder_width=32"],
    "decoder twice as wide": ["student.decoder_width=128"],
    "layers 2, 4 and last": ["teacher.layers=[1, 3, 5]"],
    "pixels too": ["loss.pixel_weight=0.2"],
}
ABLATION = {name: [*MAE, *changes] for name, changes in _CHANGES.items()}


class Arm(NamedTuple):
    """A student to compare.

    Attributes:
        changes: To the base recipe.
        ratio: Mask ratio of the masked stage; 0: nothing is masked.
        share: Share of the time for the masked stage; the rest sees whole images.
        same_updates_as: Arm whose number of updates it gets, instead of equal time.
    """

    changes: list[str]
    ratio: float = 0.0
    share: float = 0.0
    same_updates_as: str = ""


# Whole frames are never mirrored either: the teacher's mean token of each position is the scene.
_WHOLE_FRAMES = ["data.crop_scale=[1, 1]", "data.flip=false"]
# Of the rendered camera that never moves.
STATIC_CAMERA: dict[str, list[str]] = {
    "scratch": [],
    "scratch, whole frames": _WHOLE_FRAMES,  # fine-tuning takes crops and flips from the recipe
    "H-GKD": [],
    "H-GKD, not standardized": PLAIN,
    "H-GKD, crops from 14 %": ["data.crop_scale=[0.14, 1]"],
    "H-GKD, embedding": ["loss.embedding_weight=1"],
    "H-GKD, whole frames": _WHOLE_FRAMES,
    "dense": ["mask.ratio=0"],
    "dense, embedding": ["mask.ratio=0", "loss.embedding_weight=1"],
    "dense, whole frames": ["mask.ratio=0", *_WHOLE_FRAMES],
    "dense, whole frames, weighed sites": [
        *("mask.ratio=0", "loss.weigh_sites=true", *_WHOLE_FRAMES)
    ],
    "dense, whole frames, embedding": ["mask.ratio=0", "loss.embedding_weight=1", *_WHOLE_FRAMES],
}

_NO_EMBEDDING = ["loss.embedding_weight=0"]
# Run only if asked for. The cost of an update is that of the chosen recipe, at the same ratio.
ON_REQUEST = {
    "dense, embedding, 8 views": Arm(["teacher.cache=8"]),
    "dense, embedding, 16 views": Arm(["teacher.cache=16"]),
    "masked half the time, embedding, 16 views": Arm(["teacher.cache=16"], 0.75, 0.5),
    "dense, embedding, two-layer head": Arm(["student.head=mlp"]),
    "dense, embedding, middle and late block": Arm(["teacher.layers=[5, 10]"]),
    "dense, embedding, small crops": Arm(["data.crop_scale=[0.14, 1.0]"]),
    "dense, embedding, large crops": Arm(["data.crop_scale=[0.67, 1.0]"]),
    "masked, embedding": Arm([], 0.75, 1.0),
    "masked, embedding, two masks": Arm(["mask.per_image=2"], 0.75, 1.0),
    "masked, embedding, two disjoint masks": Arm(
        ["mask.per_image=2", "mask.disjoint=true"], 0.75, 1.0
    ),
}
# Their settings did not help and were removed; their cells are still reported.
REMOVED = ("dense, embedding, cosine", "dense, embedding, colors", "dense, embedding, mixup")
# At equal student time, unless stated otherwise.
EQUAL_TIME = {
    "teacher": Arm([]),  # scored by itself
    CLASS_TOKEN: Arm([]),
    "scratch": Arm([]),
    "pixels": Arm(SPARK, ratio=0.6, share=1.0),
    "dense": Arm(_NO_EMBEDDING),
    "dense, embedding": Arm([]),
    "masked half the time": Arm(_NO_EMBEDDING, 0.75, 0.5),
    "masked half the time, embedding": Arm([], 0.75, 0.5),
    "masked nine tenths, embedding": Arm([], 0.75, 0.9),
    "half masked half the time, embedding": Arm([], 0.5, 0.5),
    "masked half the time, embedding, equal updates": Arm([], 0.75, 0.5, "dense, embedding"),
    **ON_REQUEST,
}


def spelled(changes: list[str], epochs: int) -> list[str]:
    """Changes with their epoch placeholders filled in, for a base recipe with `epochs` epochs."""
    return [change.format(half=epochs // 2, long=epochs * 5 // 2) for change in changes]
