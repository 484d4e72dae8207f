"""Files of teacher weights: reads third-party formats, writes this package's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hgkd_edge.console import console
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.third_party_weights import fitting_weights
from hgkd_edge.parsing import MAX_SETTINGS_BYTES, parse_json

__all__ = ["BUNDLED_TEACHER", "load_vit_weights", "save_vit_weights"]

BUNDLED_TEACHER = Path(__file__).parent.parent / "data" / "bundled" / "demo_teacher.safetensors"
# In the metadata of weights trained by hgkd-edge: today's key, and that of earlier versions.
NORMALIZATION, NORMALIZATION_BEFORE = "hgkd_edge.normalization", "hgkd_edge.normalisation"


def load_vit_weights(vit: nn.Module, path: Path) -> None:
    """Load a local checkpoint: timm, official MAE, DINO, or safetensors.

    Position embeddings are resampled to the teacher's grid; decoders and heads are skipped. Weights
    trained by hgkd-edge include the normalization of their images, which replaces the one that timm
    lists for the teacher's name, and whether their class token was trained.

    Raises:
        RecipeError: The file cannot be read safely, or does not fit the teacher.
    """
    state, origin = fitting_weights(vit, path, key="teacher.path")
    vit.load_state_dict(state)
    if origin:
        console.print(f"teacher: {path.name} holds several networks; loaded '{origin}'")
    known: dict[str, Any] = getattr(vit, "pretrained_cfg", {})
    vit.pretrained_cfg = {**known, **_read_metadata(path)}  # type: ignore[assignment]


def save_vit_weights(
    vit: nn.Module,
    path: Path,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_token: bool,
) -> None:
    """Write a teacher trained by hgkd-edge.

    Args:
        vit: The teacher.
        path: The file.
        mean: That its training images were normalized by.
        std: Likewise.
        class_token: Whether its class token was trained. A masked autoencoder's is not, as its loss
            is that of the patch tokens.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in vit.state_dict().items()}
    facts = json.dumps({"mean": mean, "std": std, "class_token": class_token})
    save_file(tensors, path, metadata={"format": "pt", NORMALIZATION: facts})


def _read_metadata(path: Path) -> dict[str, Any]:
    """`mean`, `std` and `class_token` by `save_vit_weights`; empty for third-party weights.

    Raises:
        RecipeError: The file's metadata holds invalid values under these names.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as stored:
        entries = stored.metadata() or {}
    text = entries.get(NORMALIZATION, entries.get(NORMALIZATION_BEFORE))
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
    return {**found, "class_token": fields.get("class_token") is True}
