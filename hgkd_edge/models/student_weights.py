"""Initial weights of a student: timm's published ones, or from a file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hgkd_edge.console import console
from hgkd_edge.models.backbone import create_timm_model
from hgkd_edge.models.published_weights import create_published
from hgkd_edge.models.third_party_weights import fitting_weights
from hgkd_edge.recipe_sections import StudentConfig

__all__ = ["initial_weights", "published_student"]


def published_student(config: StudentConfig) -> nn.Module:
    """The plain timm model with pretrained weights from the hub, without a classifier.

    Raises:
        RecipeError: timm has no weights for the model, or they cannot be downloaded.
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
    """The weights of a local checkpoint under the plain timm model's names, without classifiers.

    `backbone.safetensors` and `model.safetensors` are accepted too.

    Raises:
        RecipeError: The file cannot be read safely, or belongs to another network.
    """
    network = create_timm_model("student.name", config.name, config.args, num_classes=0)
    head = str(network.pretrained_cfg.get("classifier") or "")  # type: ignore[union-attr,operator]
    state, origin = fitting_weights(network, path, key="student.path", skipped=head)
    if origin:
        console.print(f"student: {path.name} holds several networks; loaded '{origin}'")
    return state
