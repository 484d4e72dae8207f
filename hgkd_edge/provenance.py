"""Where a result comes from: versions, revision, data, hardware, for a run's manifest."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from hgkd_edge import __version__
from hgkd_edge.cells import counted
from hgkd_edge.console import console, warn
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import resolve_precision
from hgkd_edge.manifest_record import Circumstances, Hardware, SplitRecord
from hgkd_edge.rundir import RunDir

__all__ = ["circumstances", "record_met", "report_photos", "report_skipped", "split_record"]


def circumstances(*, seed: int, precision: str, splits: dict[str, ImageSource]) -> Circumstances:
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
    data = {name: split_record(source) for name, source in splits.items()}
    for record in data.values():
        record.shorten()
    return Circumstances(
        versions={
            "hgkd_edge": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
        },
        git_revision=_git_revision(),
        seed=seed,
        precision=resolve_precision(precision),
        hardware=Hardware(
            machine=platform.machine(),
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name() if on_gpu else None,
        ),
        data=data,
    )


def split_record(source: ImageSource) -> SplitRecord:
    """The images of a split, for the manifest; a streamed source lists what it met so far."""
    return SplitRecord(
        photos=len(source),
        fingerprint=source.fingerprint,
        skipped=source.skipped,
        noted=source.noted,
        decided=source.decided,
        classes=source.classes,
    )


def _git_revision() -> str | None:
    """Revision of this package's checkout; None when installed from a wheel."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        # An environment may lie in the checkout of another project, which does not track it.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def report_photos(splits: dict[str, ImageSource]) -> None:
    """Print how many images there are, and which images or annotations are skipped."""
    counts = ", ".join(f"{len(source)} {name}" for name, source in splits.items())
    how = ", decoded during training" if splits["train"].streamed else ""
    console.print(f"images: {counts}{how}")
    for remark in (line for source in splits.values() for line in source.remarks):
        console.print(remark, soft_wrap=True)
    report_skipped(splits, ", see manifest.json")


def report_skipped(splits: dict[str, ImageSource], listed: str = "") -> None:
    """Print which images or annotations are skipped, and which are used with a warning.

    Args:
        splits: Their sources.
        listed: Where a longer list is, after a comma.
    """
    noted = [item for source in splits.values() for item in source.noted]
    if noted:
        warn(f"{counted(len(noted), 'image')} used with a warning:")
        for name, what in noted[:5]:
            console.print(f"  {name}: {what}", soft_wrap=True)
    skipped = [item for source in splits.values() for item in source.skipped]
    if skipped:
        warn(f"skipped {counted(len(skipped), 'file or annotation', 'files or annotations')}:")
        for name, reason in skipped[:5]:
            console.print(f"  {name}: {reason}", soft_wrap=True)
        if len(skipped) > 5:
            console.print(f"  ... and {len(skipped) - 5} more{listed}")


def record_met(run: RunDir, met: Sequence[SplitRecord]) -> None:
    """Add images that any process skipped or noted in training to the manifest's lists.

    Args:
        run: Its folder.
        met: The training images as each process met them.
    """
    data = run.manifest().data
    train, known = data["train"], data["train"].skipped_count
    train.skipped = sorted({*train.skipped, *(entry for one in met for entry in one.skipped)})
    train.noted = sorted({*train.noted, *(entry for one in met for entry in one.noted)})
    train.shorten()
    if train.skipped_count > known:
        warn(f"skipped {counted(train.skipped_count, 'file')}; see manifest.json")
    run.update_manifest(Circumstances(data=data))
