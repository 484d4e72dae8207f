"""Where a result comes from: versions, revision, data, hardware, for a run's manifest."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hgkd_edge import __version__
from hgkd_edge.console import console, warn
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import resolve_precision
from hgkd_edge.rundir import RunDir

__all__ = ["circumstances", "record_skipped", "report_photos"]


def circumstances(*, seed: int, precision: str, splits: dict[str, ImageSource]) -> dict[str, Any]:
    """Versions, revision, data and hardware, for the manifest.

    Args:
        seed: Of the training.
        precision: As configured; what `auto` means here is looked up.
        splits: All of its photos.
    """
    import accelerate
    import timm
    import torchvision

    on_gpu = torch.cuda.is_available()
    return {
        "versions": {
            "hgkd_edge": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
        },
        "git_revision": _git_revision(),
        "seed": seed,
        "precision": resolve_precision(precision),
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if on_gpu else None,
        },
        "data": {
            name: {
                "photos": len(source),
                "fingerprint": source.fingerprint,
                "skipped": source.skipped,
                "classes": source.classes,
            }
            for name, source in splits.items()
        },
    }


def _git_revision() -> str | None:
    """Revision of this package's own checkout; None when it is installed from a wheel."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def report_photos(splits: dict[str, ImageSource]) -> None:
    """Say how many photos there are, and which of them, or of their annotations, are left out."""
    counts = ", ".join(f"{len(source)} {name}" for name, source in splits.items())
    how = ", decoded as training goes" if splits["train"].streamed else ""
    console.print(f"photos: {counts}{how}")
    skipped = [item for source in splits.values() for item in source.skipped]
    if skipped:
        warn(f"left out {len(skipped)} files or annotations:")
        for name, reason in skipped[:5]:
            console.print(f"  {name}: {reason}", soft_wrap=True)
        if len(skipped) > 5:
            console.print(f"  ... and {len(skipped) - 5} more, all listed in manifest.json")


def record_skipped(run: RunDir, skipped: list[list[tuple[str, str]]]) -> None:
    """Add the training photos that were met in training and could not be read, by any process."""
    data = run.manifest()["data"]
    known = [tuple(entry) for entry in data["train"]["skipped"]]
    found = sorted({*known, *(entry for entries in skipped for entry in entries)})
    if len(found) > len(known):
        warn(f"left out {len(found)} files; manifest.json lists them")
        data["train"]["skipped"] = found
        run.update_manifest(data=data)
