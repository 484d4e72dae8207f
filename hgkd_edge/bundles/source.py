"""The source of a bundle, and files that several bundles share."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from exporters import ExportError
from exporters.network_files import network_files
from exporters.onnx_info import OnnxInfo, onnx_info, require_image_input
from hgkd_edge import __version__
from hgkd_edge.console import printable
from hgkd_edge.data.input_spec import BAKED, PREFIX
from hgkd_edge.data.names import readable
from hgkd_edge.distillation.license import license_notes
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import Exportable
from hgkd_edge.parsing import parse_json
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.suppression import SUPPRESSION

__all__ = [
    "Bundle",
    "BundleSource",
    "copy_network",
    "copy_programs",
    "require_plain_names",
    "write_labels",
]

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Bundle:
    """One kind of bundle.

    Attributes:
        tasks: Supported tasks.
        check: Rejects other unsupported models, before anything is made.
        flavor: Flavor of its INT8 file.
        write: Fills an empty folder; returns the file that it was made from.
    """

    tasks: tuple[str, ...]
    flavor: str
    check: Callable[[Exportable], None]
    write: Callable[[BundleSource, Path], Path]


@dataclass(frozen=True)
class BundleSource:
    """A run's model, and its newly exported and verified files.

    Attributes:
        run: The run.
        subject: Its model.
        plain: The ONNX file of the precision asked for: f32[B, 3, H, W] -> the network's outputs.
        baked: The same with the requested processing inside; `plain` if none was requested.
        precision: Precision of both files.
        options: Options of the export.
    """

    run: RunDir
    subject: Exportable
    plain: Path
    baked: Path
    precision: str
    options: ExportOptions

    @property
    def name(self) -> str:
        """The run's name, limited to characters that are safe for servers and shells."""
        return _UNSAFE.sub("-", self.run.path.resolve().name).strip("-.") or "model"

    @cached_property
    def licenses(self) -> list[str]:
        """Notes on the licenses of the weights that the run started from, one line each."""
        return [printable(note) for note in license_notes(self.run.manifest())]

    def _settings(self, onnx: Path) -> dict[str, object]:
        """The settings of an ONNX file for `predict.py`, written to `model.json`."""
        info = onnx_info(onnx)
        taken, feed = self.subject.input, require_image_input(onnx, info)
        frame = info.metadata.get(f"{PREFIX}frame", "null")
        return {
            "name": self.name,
            "made_by": f"hgkd-edge {__version__}",
            "task": self.subject.task,
            "classes": list(map(readable, self.subject.classes)),
            "threshold": self.subject.threshold,
            "input_name": feed.name,
            "size": list(taken.size),
            "mean": list(taken.mean),
            "std": list(taken.std),
            "geometry": taken.geometry,
            "bits": taken.bits,
            "baked": parse_json(info.metadata.get(BAKED, "[]")),
            "frame": parse_json(frame),
            "precision": self.precision,
            "dynamic_batch": not isinstance(feed.shape[0], int),
            "suppression": {
                "threshold": SUPPRESSION.threshold,
                "overlap": SUPPRESSION.overlap,
                "candidates": SUPPRESSION.candidates,
                "limit": SUPPRESSION.limit,
            },
            "sha256": info.sha256,
        }

    def write_settings(self, onnx: Path, folder: Path) -> None:
        """Write `model.json`."""
        text = json.dumps(self._settings(onnx), indent=2) + "\n"
        (folder / "model.json").write_text(text, encoding="utf-8")

    def write_readme(self, template: str, folder: Path, **values: Any) -> None:
        """Write README.md from a template of this package."""
        environment = Environment(
            loader=PackageLoader("hgkd_edge.bundles"),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        text = environment.get_template(template).render(
            name=self.name,
            task=self.subject.task,
            precision=self.precision,
            input=self.subject.input,
            licenses=self.licenses,
            version=__version__,
            **values,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")


def copy_network(onnx: Path, target: Path) -> OnnxInfo:
    """Copy an ONNX file to `target`, its weights in other files next to it.

    Raises:
        ExportError: A file of it is missing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in network_files(onnx):
        shutil.copyfile(file, target if file == onnx else target.parent / file.name)
    return onnx_info(target)


def copy_programs(names: tuple[str, ...], folder: Path) -> None:
    """Copy programs of `device/`."""
    for name in names:
        text = resources.files("hgkd_edge.bundles.device").joinpath(name).read_text("utf-8")
        (folder / name).write_text(text, encoding="utf-8")


def require_plain_names(classes: tuple[str, ...], *, forbidden: str = "") -> None:
    """Reject class names that would not survive a label file.

    Args:
        classes: The names.
        forbidden: Characters with a special meaning in this file, in addition to line ends.

    Raises:
        ExportError: A name holds one of them.
    """
    for name in classes:
        if bad := next((c for c in f"\n\r{forbidden}" if c in name), None):
            raise ExportError(
                f"class '{printable(name)}' holds {bad!r}, which separates names in labels.txt",
                hint="rename the class in the data and fine-tune again, or choose another bundle",
            )


def write_labels(classes: tuple[str, ...], path: Path, *, separator: str = "\n") -> None:
    """Write class names in the order of the outputs, a `separator` between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(separator.join(map(readable, classes)) + "\n", encoding="utf-8")
