"""The arms of the study, each as what it changes in the base recipe."""

from __future__ import annotations

__all__ = ["ABLATION", "ARMS", "SCRATCH"]

SCRATCH = "scratch"
MAE = ["teacher.pretrain.label_epochs=0"]
STANDARD = ["teacher.standardize=true"]
DENSE = ["mask.ratio=0", "loss.where=all"]
# The grid of masks is only 4 x 4 patches here: 0.6, good for 7 x 7, leaves too little of a photo.
H_GKD = [*STANDARD, "mask.ratio=0.4", "mask.whole_share=0.25"]

# (a) to (d) of the comparison; the student, its updates and its fine-tuning are the same in all.
ARMS: dict[str, list[str]] = {
    SCRATCH: [],
    # SparK (Tian et al. 2023): pixels of masked patches, normalised within each patch.
    "pixels": [*MAE, "loss.feature_weight=0", "loss.pixel_weight=1", "loss.where=masked"],
    # Plain feature distillation: nothing masked, so the sparse student is a dense one.
    "dense-features": [*MAE, *DENSE],
    "dense-features, standardised": [*MAE, *STANDARD, *DENSE],
    "h-gkd": [*MAE, *H_GKD],
    "h-gkd, ratio 0.6, not standardised": MAE,
    "h-gkd, ratio 0.6, standardised": [*MAE, *STANDARD],
    # Upper reference: the teacher has seen the labels of the training photos.
    "dense-features, labelled teacher": DENSE,
    "h-gkd, labelled teacher": H_GKD,
}

# One change at a time to "h-gkd".
ABLATION: dict[str, list[str]] = {
    "base": [],
    "not standardised": ["teacher.standardize=false"],
    "ratio 0.25": ["mask.ratio=0.25"],
    "ratio 0.6": ["mask.ratio=0.6"],
    "no whole photos": ["mask.whole_share=0"],
    "where visible": ["loss.where=visible"],
    "view visible": ["teacher.view=visible", "loss.where=visible", "mask.whole_share=0"],
    "where masked": ["loss.where=masked", "mask.whole_share=0"],
    "target mse": ["loss.target=mse"],
    "target cosine": ["loss.target=cosine"],
    "2 masks, half the epochs": ["mask.per_image=2", "train.epochs={half}"],
    "layers 2, 4 and last": ["teacher.layers=[1, 3, 5]"],
    "pixels too": ["loss.pixel_weight=0.2"],
}
ABLATION = {name: [*MAE, *H_GKD, *changes] for name, changes in ABLATION.items()}
