"""Photos listed in a CSV file: one row per photo, with its label and perhaps its split."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np

from hgkd_edge.data.folder import read_file, size_of_file
from hgkd_edge.data.photos import SPLIT_NAMES, UNLABELLED, Listing, Photos, with_holdout
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.recipe import DataConfig

__all__ = ["is_table", "table_photos"]

IMAGE_COLUMNS = ("image", "file", "filename", "path")
LABEL_COLUMNS = ("label", "class")
Row = tuple[str, str, str]  # file, label ('' where there is none), split


def is_table(config: DataConfig) -> bool:
    """Whether `data.path` is a CSV file rather than a folder."""
    return config.source == "folder" and str(config.path).lower().endswith(".csv")


def table_photos(config: DataConfig) -> Listing:
    """Photos of a CSV file with a header: `image` and, if given, `label` and `split`.

    Image paths are relative to the CSV file. A file that is missing or broken is skipped and
    listed, as in a folder. Where all rows are of split `train`, or no split is given, a share is
    held out.

    Raises:
        DataError: The file, a column or a split's name is wrong; names the line.
    """
    assert config.path is not None, "checked by DataConfig"
    table = config.path.expanduser()
    rows = _read_rows(table)
    classes = sorted({label for _, label, _ in rows if label})
    number = {name: i for i, name in enumerate(classes)}
    photos = {
        split: _photos([row for row in rows if row[2] == split], number, table.parent)
        for split in sorted({split for _, _, split in rows})
    }
    return Listing(with_holdout(photos, config.holdout), classes)


def _photos(rows: list[Row], number: dict[str, int], root: Path) -> Photos:
    names = [file for file, _, _ in rows]
    return Photos(
        names=names,
        labels=np.array([number.get(label, UNLABELLED) for _, label, _ in rows], np.int64),
        read=partial(read_file, root, names),
        size=partial(size_of_file, root, names),
    )


def _read_rows(table: Path) -> list[Row]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            image = _column(table, reader.fieldnames or (), IMAGE_COLUMNS)
            label = next((c for c in LABEL_COLUMNS if c in (reader.fieldnames or ())), "")
            rows = [
                (row[image] or "", row.get(label) or "", row.get("split") or "") for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.path '{table}' cannot be read as CSV: {reason_of(error)}") from error
    if not rows:
        raise DataError(f"data.path '{table}' lists no photos")
    _check_splits(table, rows)
    return [(file, text, SPLIT_NAMES.get(split, "train")) for file, text, split in rows]


def _column(table: Path, header: object, names: tuple[str, ...]) -> str:
    columns = list(header)  # type: ignore[call-overload]
    for name in names:
        if name in columns:
            return name
    raise DataError(
        f"data.path '{table}': its first line has no column '{names[0]}'",
        hint="begin with a header line: image, image,label or image,label,split",
    )


def _check_splits(table: Path, rows: list[Row]) -> None:
    """All rows name a split, train among them, or none does."""
    for line, (_, _, split) in enumerate(rows, start=2):
        if split not in ("", *SPLIT_NAMES) or bool(split) != bool(rows[0][2]):
            raise DataError(
                f"{table}, line {line}: split '{split}'",
                hint="name one of train, val, test in every line, or leave the column out",
            )
    if rows[0][2] and all(split != "train" for _, _, split in rows):
        raise DataError(f"data.path '{table}': no line is of split 'train'")
