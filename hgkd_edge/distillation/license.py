"""The license of published weights, as stated by timm; each run prints and records it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hgkd_edge.console import console, warn
from hgkd_edge.manifest_record import ManifestRecord

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "forbids_commerce",
    "license_notes",
    "license_terms",
    "print_license",
    "published_license",
]

RESEARCH_ONLY = frozenset({"apple-amlr", "seer-license"})  # by their texts, not their names
# Licenses that allow commercial use and ask for little more than keeping their notice.
PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0"})


def print_license(name: str, license: str, *, role: str, file: Path | None = None) -> None:
    """Print the license of a network's weights, and a warning if it has conditions.

    Args:
        name: timm model name.
        license: As `published_license` gives it; '' prints nothing.
        role: The network's role, `teacher` or `student`.
        file: Source of the weights if not the hub; it is then unknown whether they are the
            published weights.
    """
    if not license:
        return
    line = f"{role}: {name}, license {license}"
    if file is not None:
        line = f"{role}: {file}; the published weights of {name} have the license {license}"
    console.print(line, soft_wrap=True)
    if terms := license_terms(license):
        warn(f"{role}: license {license} {terms}")


def published_license(network: nn.Module) -> str:
    """License of the hub's weights as stated by timm, '' if timm states none."""
    return getattr(network, "pretrained_cfg", {}).get("license") or ""


def license_terms(license: str) -> str:
    """What a license, by timm's name for it, asks for; '' if it is permissive or not stated."""
    if not license or license.lower() in PERMISSIVE:
        return ""
    if forbids_commerce(license):
        return "forbids commercial use"
    if license.lower() in ("unknown", "other"):
        return "names no terms: ask the publisher before you use or distribute this model"
    return "has custom terms: read them before you use or distribute this model"


def license_notes(manifest: ManifestRecord) -> list[str]:
    """Notes on the weights that a run started from and whose license has conditions.

    Args:
        manifest: The run's.

    Returns:
        One line per network, for the report and for bundles.
    """
    notes = []
    for role, origin in (("teacher", manifest.teacher), ("student", manifest.student)):
        if origin is not None and (terms := license_terms(origin.license or "")):
            weights = f"The {role}'s weights ({origin.name})"
            notes.append(f"{weights} have the license {origin.license}, which {terms}.")
    return notes


def forbids_commerce(license: str) -> bool:
    """Whether a license, by timm's name for it, forbids commercial use."""
    name = license.lower()
    return "nc" in name.split("-") or "noncommercial" in name or name in RESEARCH_ONLY
