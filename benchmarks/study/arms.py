"""The arms of the study, each as what it changes in the base recipe."""

from __future__ import annotations

__all__ = ["ABLATION", "ARMS", "SCRATCH"]

SCRATCH = "scratch"
MAE = ["teacher.pretrain.label_epochs=0"]
STANDARD = ["teacher.standardize=true"]
WHOLE = ["mask.whole_share=0.33"]

# (a) to (d) of the comparison; the student, its updates and its fine-tuning are the same in all.
ARMS: dict[str, list[str]] = {
    SCRATCH: [],
    # SparK (Tian et al. 2023): pixels of masked patches, normalised within each patch.
    "pixels": [*MAE, "loss.feature_weight=0", "loss.pixel_weight=1", "loss.where=masked"],
    # Plain feature distillation: nothing masked, so the sparse student is a dense one.
    "dense-features": [*MAE, "mask.ratio=0", "loss.where=all"],
    "h-gkd": MAE,
    "dense-features, standardised": [*MAE, *STANDARD, "mask.ratio=0", "loss.where=all"],
    "h-gkd, standardised": [*MAE, *STANDARD],
    "h-gkd, a third whole": [*MAE, *WHOLE],
    "h-gkd, standardised, a third whole": [*MAE, *STANDARD, *WHOLE],
    # Upper reference: the teacher has seen the labels of the training photos.
    "dense-features, labelled teacher": ["mask.ratio=0", "loss.where=all"],
    "h-gkd, labelled teacher": [],
}

# One change at a time to "h-gkd, labelled teacher".
ABLATION: dict[str, list[str]] = {
    "base": [],
    "where masked": ["loss.where=masked"],
    "where visible": ["loss.where=visible"],
    "view visible": ["teacher.view=visible", "loss.where=visible"],
    "target mse": ["loss.target=mse"],
    "target cosine": ["loss.target=cosine"],
    "ratio 0.4": ["mask.ratio=0.4"],
    "ratio 0.75": ["mask.ratio=0.75"],
    "2 masks, half the epochs": ["mask.per_image=2", "train.epochs={half}"],
    "layers 2, 4 and last": ["teacher.layers=[1, 3, 5]"],
    "pixels too": ["loss.pixel_weight=0.2"],
    "standardised": STANDARD,
    "a third whole": WHOLE,
}
