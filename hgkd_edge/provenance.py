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

__all__ = ["circumstances", "record_met", "report_photos"]


def circumstances(*, seed: int, precision: str, splits: dict[str, ImageSource]) -> dict[str, Any]:
    """Versions, revision, data and hardware, for the manifest.

    Args:
        seed: Seed of the training.
        precision: As configured; `auto` is resolved for this machine.
        splits: All images of the run.
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
                "noted": source.noted,
                "decided": source.decided,
                "classes": source.classes,
            }
            for name, source in splits.items()
        },
    }


def _git_revision() -> str | None:
    """Revision of this package's checkout; None when installed from a wheel."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def report_photos(splits: dict[str, ImageSource]) -> None:
    """Print how many images there are, and which images or annotations are skipped."""
    counts = ", ".join(f"{len(source)} {name}" for name, source in splits.items())
    how = ", decoded during training" if splits["train"].streamed else ""
    console.print(f"images: {counts}{how}")
    for remark in (line for source in splits.values() for line in source.remarks):
        console.print(remark, soft_wrap=True)
    noted = [item for source in splits.values() for item in source.noted]
    if noted:
        warn(f"{len(noted)} images are used with a warning:")
        for name, what in noted[:5]:
            console.print(f"  {name}: {what}", soft_wrap=True)
    skipped = [item for source in splits.values() for item in source.skipped]
    if skipped:
        warn(f"skipped {len(skipped)} files or annotations:")
        for name, reason in skipped[:5]:
            console.print(f"  {name}: {reason}", soft_wrap=True)
        if len(skipped) > 5:
            console.print(f"  ... and {len(skipped) - 5} more, all listed in manifest.json")


def record_met(run: RunDir, met: list[dict[str, list[tuple[str, str]]]]) -> None:
    """Add images that any process skipped or noted in training to the manifest's lists.

    Args:
        run: Its folder.
        met: By process: `skipped` and `noted` images.
    """
    data = run.manifest()["data"]
    for key in ("skipped", "noted"):
        known = [tuple(entry) for entry in data["train"].get(key, ())]
        found = sorted({*known, *(entry for entries in met for entry in entries[key])})
        if key == "skipped" and len(found) > len(known):
            warn(f"skipped {len(found)} files; manifest.json lists them")
        data["train"][key] = found
    run.update_manifest(data=data)
