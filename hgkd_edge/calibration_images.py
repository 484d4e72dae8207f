"""The images that INT8 ranges are taken from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.spread import evenly
from hgkd_edge.errors import DataError
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import Exportable
from hgkd_edge.tasks.answers import load_photo

__all__ = ["calibration_images", "require_calibration_folder"]

COUNT = 512  # without --calib


def calibration_images(subject: Exportable, options: ExportOptions) -> np.ndarray:
    """Images as the network sees them, evenly over a folder or the training images.

    Args:
        subject: The network that is exported.
        options: `calibration` is their number, `calibration_data` the folder.

    Returns:
        float32 [n, 3, H, W].

    Raises:
        DataError: The folder is missing or holds no images, or one cannot be read.
    """
    count = options.calibration or COUNT
    if options.calibration_data is None:
        return subject.images("train", count)
    return _in_folder(Path(options.calibration_data), subject, count)


def require_calibration_folder(options: ExportOptions) -> None:
    """Check the folder before the first file is exported, which takes long.

    Raises:
        DataError: It is none.
    """
    folder = options.calibration_data
    if folder is not None and not Path(folder).is_dir():
        raise DataError(
            f"calibration folder '{folder}' is not a folder", hint="name a folder of images"
        )


def _in_folder(folder: Path, subject: Exportable, count: int) -> np.ndarray:
    """Images of a folder as the network sees them, float32 [n, 3, H, W].

    Raises:
        DataError: The folder holds no images, or one cannot be read.
    """
    found = find_images(folder)
    files = [folder / name for name in found.names]
    if not files:
        hint = found.remark(folder).removeprefix("warning: ") or "name a folder of images"
        what = "holds no image files that can be read"
        raise DataError(f"calibration folder '{folder}' {what}", hint=hint)
    chosen = [files[i] for i in evenly(len(files), count)]
    spec = subject.input
    photos = (load_photo(file, bits=spec.bits) for file in chosen)
    return np.concatenate([spec.array(photo) for photo in photos])
