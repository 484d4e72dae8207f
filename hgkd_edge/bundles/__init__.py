"""Deployment bundles: a run's verified files, packaged for a server, a device or a library.

One file per bundle; `device/` holds the programs that are copied into them, `templates/` their
READMEs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from exporters import ExportError
from exporters.atomic_files import hidden_folder
from hgkd_edge.bundles import deepstream, jetson, script, timm_folder, triton
from hgkd_edge.bundles.source import Bundle, BundleSource
from hgkd_edge.export_record import MadeBundle
from hgkd_edge.exportable import Exportable

__all__ = ["BUNDLES", "BundleSource", "flavor_of", "make_bundle", "require_bundle"]

BUNDLES: dict[str, Bundle] = {
    "triton": triton.BUNDLE,
    "deepstream": deepstream.BUNDLE,
    "timm": timm_folder.BUNDLE,
    "predict": script.BUNDLE,
    "jetson": jetson.BUNDLE,
}


def flavor_of(name: str, made: tuple[str, ...]) -> str:
    """The flavor of INT8 file that a bundle uses: its own, or the only one that was made."""
    wanted = BUNDLES[name].flavor
    return wanted if wanted in made else made[0]


def require_bundle(name: str, subject: Exportable) -> None:
    """Reject a model that the bundle does not support, before anything is made.

    Args:
        name: Name of the bundle.
        subject: The model.

    Raises:
        ExportError: Names what is not supported, with a fix.
    """
    bundle, task = BUNDLES[name], subject.task
    if task not in bundle.tasks:
        what = "a bare backbone" if task == "embed" else f"a model of the task {task}"
        raise ExportError(
            f"--bundle {name}: {what} is not supported (it takes {', '.join(bundle.tasks)})",
            hint=_way_out(bundle, task),
        )
    bundle.check(subject)


def _way_out(bundle: Bundle, task: str) -> str:
    if task == "embed":
        return "fine-tune the run first: hgkd-edge finetune"
    if "embed" in bundle.tasks:
        return "add --backbone for the run's distilled backbone"
    fitting = [name for name, one in BUNDLES.items() if task in one.tasks]
    return f"choose another bundle: {', '.join(fitting)}"


def make_bundle(name: str, source: BundleSource, folder: Path) -> MadeBundle:
    """Write a bundle's folder atomically.

    Args:
        name: One of `BUNDLES`.
        source: What it is made from.
        folder: Replaced if it exists.

    Returns:
        The folder, and what is in it.

    Raises:
        ExportError: It cannot be made from this model; the hint says how to fix that.
        VerificationFailed: A file of it differs from its source.
    """
    require_bundle(name, source.subject)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(folder.parent) as temporary:
        new, old = temporary / folder.name, temporary / "replaced"
        new.mkdir()
        made_from = BUNDLES[name].write(source, new)
        files = sorted(file.relative_to(new) for file in new.rglob("*") if file.is_file())
        if folder.is_dir():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.is_dir():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return MadeBundle(
        bundle=name,
        path=str(folder),
        files=[file.as_posix() for file in files],
        made_from=made_from.name,
    )
