"""Weights that a student starts from: a timm model's published ones, or a file's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hgkd_edge.console import console
from hgkd_edge.models.backbone import create_published, create_timm_model
from hgkd_edge.models.checkpoint import fitting_weights
from hgkd_edge.recipe import StudentConfig

__all__ = ["initial_weights", "published_student"]


def published_student(config: StudentConfig) -> nn.Module:
    """The plain timm model with the hub's weights, without a classifier.

    Raises:
        RecipeError: timm has no weights for it, or they cannot be downloaded.
    """
    return create_published(
        "student.name",
        config.name,
        config.args,
        asked="student.weights = 'hub'",
        instead="student.weights 'path' (a local file) or 'none'",
        num_classes=0,
    )


def initial_weights(config: StudentConfig, path: Path) -> dict[str, Tensor]:
    """The weights of a local checkpoint, by the names of the plain timm model; classifiers dropped.

    A `backbone.safetensors` or `model.safetensors` of ours is such a file.

    Raises:
        RecipeError: The file cannot be read safely, or is not of this network.
    """
    network = create_timm_model("student.name", config.name, config.args, num_classes=0)
    head = str(network.pretrained_cfg.get("classifier") or "")  # type: ignore[union-attr,operator]
    state, origin = fitting_weights(network, path, key="student.path", skipped=head)
    if origin:
        console.print(f"student: {path.name} holds several networks; loaded '{origin}'")
    return state
