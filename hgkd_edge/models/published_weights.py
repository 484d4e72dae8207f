"""Networks with the weights that their publisher offers, downloaded through timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import create_timm_model

__all__ = ["create_published"]


def create_published(
    key: str, name: str, args: dict[str, object], *, asked: str, instead: str, **own: Any
) -> nn.Module:
    """`create_timm_model` with pretrained weights from the hub.

    Args:
        key: The recipe's key that names the model.
        name: timm model name; untrusted.
        args: Architecture arguments; untrusted.
        asked: The setting that requests the weights, for the message.
        instead: The offline alternative, for the hint.
        own: As for `create_timm_model`.

    Raises:
        RecipeError: timm has no weights for the model, or they cannot be downloaded.
    """
    try:
        return create_timm_model(key, name, args, pretrained=True, **own)
    except OSError as error:  # huggingface_hub and urllib raise kinds of OSError when offline
        raise RecipeError(
            f"{asked}: weights of '{name}' cannot be downloaded ({type(error).__name__})",
            hint=f"without a network use {instead}",
        ) from error
