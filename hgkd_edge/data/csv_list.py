"""Images listed in a CSV file: one row per image, with its label and optionally its split."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hgkd_edge.data.holdout import shared_images, with_holdout
from hgkd_edge.data.images import read_image_file
from hgkd_edge.data.names import ClassNames, FileFinder, clean, name_classes, split_named
from hgkd_edge.data.photos import UNLABELED, Listing, Photos, outside
from hgkd_edge.data.table_labels import TableLabels, labels_of_cells, labels_of_columns
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.parsing import read_text
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["NOT_CLASSES", "is_table", "table_photos"]

SUFFIXES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t", "|")
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path")
LABEL_COLUMNS = ("label", "class")
PLURAL_COLUMNS = ("labels", "classes", "tags")
SPLIT_COLUMNS = ("split",)
NOT_CLASSES = frozenset((*LABEL_COLUMNS, *PLURAL_COLUMNS, *SPLIT_COLUMNS))  # lower case
HEADER = "the first line must be a header: image, or image,label or image,label,split"


class Row(NamedTuple):
    """One line of a table, the names of its labels, and its split, '' if missing."""

    line: int
    file: str
    labels: tuple[str, ...]
    split: str


def is_table(config: DataConfig) -> bool:
    """Whether `data.path` is a table rather than a folder."""
    named = config.source == "folder" and str(config.path).lower().endswith(SUFFIXES)
    return named and config.path is not None and not config.path.expanduser().is_dir()


def table_photos(config: DataConfig) -> Listing:
    """Images of a CSV file with a header: `image` and optionally `label` and `split`.

    Classes may also be columns of 0 and 1. If a line holds several labels, labels are multi-hot:
    see `Photos.labels`.

    Image paths are relative to the CSV file. A missing or broken file is skipped and listed, as in
    a folder. If all rows are of split `train`, or no split is given, a share is held out.

    Raises:
        DataError: The file, a column or a split's name is wrong; the message names the line.
    """
    assert config.path is not None, "checked by DataConfig"
    table = config.path.expanduser()
    rows, found = _read_rows(table)
    _check_splits(table, rows)
    classes = name_classes(name for row in rows for name in row.labels)
    numbers = _multi_hot if found.several else _class_numbers
    by_split: dict[str, list[Row]] = {}
    for row in rows:
        by_split.setdefault(split_named(row.split) or "train", []).append(row)
    photos = {}
    for split in sorted(by_split):
        own = by_split[split]
        files = _Files(table.parent, [row.file for row in own])
        photos[split] = Photos(files.names, numbers(classes, own), files.read, files.size)
    away = outside(table.parent, (table.parent / row.file for row in rows))
    shared = shared_images({split: [row.file for row in own] for split, own in by_split.items()})
    remarks = [line for line in (found.remark, away, *classes.remarks, *shared) if line]
    held = with_holdout(photos, config.holdout)
    return Listing(held, classes.names, remarks=remarks)


def _class_numbers(classes: ClassNames, rows: list[Row]) -> np.ndarray:
    """The class of each row, int64 [n], or `UNLABELED`."""
    names = (row.labels[0] if row.labels else "" for row in rows)
    return np.array(classes.numbers(names, unknown=UNLABELED), np.int64)


def _multi_hot(classes: ClassNames, rows: list[Row]) -> np.ndarray:
    """1 for each label of each row, int8 [n, classes]."""
    hot = np.zeros((len(rows), len(classes.names)), np.int8)
    lines = np.repeat(np.arange(len(rows)), [len(row.labels) for row in rows])
    names = (name for row in rows for name in row.labels)
    numbers = np.array(classes.numbers(names, unknown=UNLABELED), np.int64)
    named = numbers != UNLABELED  # others have invisible characters only
    hot[lines[named], numbers[named]] = 1
    return hot


class _Files:
    """Reads the files that rows name; differently spelled files are searched for when read."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.names, self._finder = names, FileFinder(root)

    def read(self, i: int) -> bytes:
        return read_image_file(self._path(i))

    def size(self, i: int) -> int:
        try:
            return self._path(i).stat().st_size
        except OSError:  # missing: reported when it is read
            return -1

    def _path(self, i: int) -> Path:
        found = self._finder.find(self.names[i])
        return found or self._finder.root / self.names[i]


def _read_rows(table: Path) -> tuple[list[Row], TableLabels]:
    """The rows of a table, and what was decided about their labels."""
    header, lines = _read_cells(table)
    names = [clean(cell).lower() for cell in header]
    image, label, split = _columns(table, names)
    if label < 0:
        found = labels_of_columns([*map(clean, header)], lines, {image, split})
    else:
        found = labels_of_cells(lines, label, plural=names[label] in PLURAL_COLUMNS)
    rows = [
        Row(line, cells[image], held, cells[split] if split >= 0 else "")
        for (line, cells), held in zip(lines, found.labels, strict=True)
    ]
    return rows, found


def _read_cells(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a table, and the number and cells of each line.

    Raises:
        DataError: The table cannot be read or is empty.
    """
    try:
        text = read_text(table)
        separator = _separator(text.lstrip("\n\r").partition("\n")[0])
        lines = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True
        )
        header: list[str] = []
        rows = []
        for cells in lines:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = cells
                _columns(table, [clean(cell).lower() for cell in header])
                continue
            if any(cells[len(header) :]):
                raise DataError(
                    f"{table}, line {lines.line_num}: has {len(cells)} cells, its header "
                    f"{len(header)}",
                    hint="put quotes around cells that hold the separator",
                )
            cells += [""] * (len(header) - len(cells))
            rows.append((lines.line_num, cells))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"data.path '{table}' cannot be read as CSV: {reason_of(error)}",
            hint="save it as CSV in UTF-8",
        ) from error
    if not rows:
        raise DataError(f"data.path '{table}' lists no images", hint=HEADER)
    return header, rows


def _separator(header: str) -> str:
    """The separator of a table, detected from its header."""

    def known(separator: str) -> int:
        cells = {cell.strip().strip('"').lower() for cell in header.split(separator)}
        return len(cells & {*IMAGE_COLUMNS, *LABEL_COLUMNS, *PLURAL_COLUMNS, *SPLIT_COLUMNS})

    return max(SEPARATORS, key=known)


def _columns(table: Path, header: list[str]) -> tuple[int, int, int]:
    """The columns that hold image, label and split; -1 if missing."""
    image, label, split = (
        next((header.index(name) for name in names if name in header), -1)
        for names in (IMAGE_COLUMNS, LABEL_COLUMNS + PLURAL_COLUMNS, SPLIT_COLUMNS)
    )
    if image < 0:
        shown = ", ".join(f"'{name}'" for name in header)[:100]
        raise DataError(
            f"data.path '{table}': its first line has no column 'image', only {shown}", hint=HEADER
        )
    return image, label, split


def _check_splits(table: Path, rows: list[Row]) -> None:
    """Check that all rows name a split and one is train, or that no row names a split."""
    for row in rows:
        unknown = row.split and split_named(row.split) is None
        if unknown or bool(row.split) != bool(rows[0].split):
            raise DataError(
                f"{table}, line {row.line}: split '{row.split}'",
                hint="name one of train, val, test in every line, or remove the column",
            )
    if rows[0].split and all(split_named(row.split) != "train" for row in rows):
        raise DataError(
            f"data.path '{table}': no line is of split 'train'", hint="name one in column 'split'"
        )
