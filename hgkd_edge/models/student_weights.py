"""Weights that a student starts from: a timm model's published ones, or a file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hgkd_edge.console import console
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import create_timm_model
from hgkd_edge.models.checkpoint import fitting_weights
from hgkd_edge.recipe import StudentConfig

__all__ = ["initial_weights", "published_student"]


def published_student(config: StudentConfig) -> nn.Module:
    """The plain timm model with the hub's weights, without a classifier.

    Raises:
        RecipeError: timm has no weights for it, or they cannot be downloaded.
    """
    own: dict[str, Any] = {"num_classes": 0, "pretrained": True}
    try:
        return create_timm_model("student.name", config.name, config.args, **own)
    except OSError as error:  # huggingface_hub and urllib raise kinds of OSError when offline
        raise RecipeError(
            f"student.name = '{config.name}': its weights cannot be downloaded "
            f"({type(error).__name__})",
            hint="without a network use student.weights 'path' (a local file) or 'none'",
        ) from error


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
