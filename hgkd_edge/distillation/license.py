"""The license of published weights, as stated by timm; each run prints and records it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hgkd_edge.console import console, warn

__all__ = ["forbids_commerce", "license_of_weights", "published_license"]

RESEARCH_ONLY = frozenset({"apple-amlr", "seer-license"})  # by their texts, not their names


def license_of_weights(
    name: str, network: nn.Module, *, file: Path | None = None, role: str = "teacher"
) -> dict[str, str]:
    """The license of a network's weights, for the manifest; printed, with a warning if needed.

    Args:
        name: timm model name, whose metadata state the license of published weights.
        network: The network itself.
        file: Source of the weights if not the hub; it is then unknown whether they are the
            published weights.
        role: The network's role, `teacher` or `student`.
    """
    license = published_license(network)
    if not license:
        return {}
    said = f"{role}: {name}, license {license}"
    if file is not None:
        said = f"{role}: {file}; the published weights of {name} have the license {license}"
    console.print(said, soft_wrap=True)
    if forbids_commerce(license):
        warn(f"{license} forbids commercial use of the {role}'s weights")
    return {"licence": license}


def published_license(network: nn.Module) -> str:
    """License of the hub's weights as stated by timm, '' if timm states none."""
    return getattr(network, "pretrained_cfg", {}).get("license") or ""


def forbids_commerce(license: str) -> bool:
    """Whether a license, by timm's name for it, forbids commercial use."""
    name = license.lower()
    return "nc" in name.split("-") or "noncommercial" in name or name in RESEARCH_ONLY
