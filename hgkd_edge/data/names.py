"""How splits, classes and files are spelled; all readers of names use this module.

Names come from folders, lists, tables, archives and annotation files, from people and from tools.
Two spellings may be the same name even if they differ in Unicode form, spaces or case.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from hgkd_edge.errors import DataError

__all__ = [
    "SPELLINGS",
    "ByName",
    "ClassNames",
    "FileFinder",
    "a_few",
    "clean",
    "name_classes",
    "readable",
    "split_in",
    "split_named",
    "splits_by_name",
]

SPELLINGS = {
    "train": ("train", "training", "trainset", "trn"),
    "val": (
        *("val", "valid", "validation", "validate", "valset"),
        *("dev", "devset", "devel", "development", "eval", "evaluation", "evalset"),
    ),
    "test": ("test", "testing", "testset", "tst"),
}
SPLIT_OF = {word: split for split, words in SPELLINGS.items() for word in words}
# Words that may accompany a split's name without changing its meaning.
FILLERS = {"set", "split", "data", "dataset", "images", "image", "imgs", "img", "photos"}
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))  # zero-width, soft hyphen
T = TypeVar("T")


def split_named(name: str) -> str | None:
    """`train`, `val` or `test` if a name states only a split, such as `Testing` or `val2017`.

    >>> split_named("Training_set"), split_named("dev"), split_named("test 2")
    ('train', 'val', None)
    """
    words = [word for word in _words(name) if word not in FILLERS]
    only_years = all(len(digits) == 4 for digits in re.findall(r"\d+", name))
    return SPLIT_OF.get(words[0]) if len(words) == 1 and only_years else None


def split_in(name: str) -> str | None:
    """The split that a file name contains among other words, such as `instances_val2017`.

    >>> split_in("instances_val2017"), split_in("cam0-train-000"), split_in("latest")
    ('val', 'train', None)
    """
    return next((SPLIT_OF[word] for word in reversed(_words(name)) if word in SPLIT_OF), None)


def splits_by_name(names: Iterable[str], root: object) -> dict[str, str]:
    """Split, train first -> the name that stands for it; other names are ignored.

    Raises:
        DataError: Two names stand for one split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = split_named(name)
        if split is not None and split in found:
            raise DataError(
                f"{root}: both '{found[split]}' and '{name}' stand for split '{split}'",
                hint="keep one of them",
            )
        if split is not None:
            found[split] = name
    return {split: found[split] for split in SPELLINGS if split in found}


def readable(name: str) -> str:
    r"""A name that can be printed, hashed and written: non-UTF-8 bytes become `\xe9`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeEncodeError):
            return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return name.encode("utf-8", "backslashreplace").decode()  # lone surrogate, from JSON
    return name


def clean(name: str) -> str:
    """A name in the normal form used for comparison and display.

    Uses Unicode's composed form (macOS writes `e` and an accent as two characters), without spaces
    at the ends and without invisible characters.
    """
    composed = unicodedata.normalize("NFC", readable(name)).translate(INVISIBLE)
    return composed.replace("\u00a0", " ").strip()


def a_few(names: Sequence[str], *, shown: int = 3) -> str:
    """Names for a message: the first few in quotes, and the number of the rest."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + more


class ClassNames(NamedTuple):
    """Class names of a data set, and remarks on their spelling.

    Attributes:
        names: Sorted.
        remarks: Spellings that were merged, and names that differ only in case.
    """

    names: list[str]
    remarks: list[str]

    def numbers(self, names: Iterable[str], *, unknown: int) -> list[int]:
        """The number of every name in any of its spellings; `unknown` if it is not a class."""
        known = {name: i for i, name in enumerate(self.names)}
        names = list(names)
        by_spelling = {name: known.get(clean(name), unknown) for name in set(names)}
        return [by_spelling[name] for name in names]


def name_classes(
    spellings: Iterable[str], sort: Callable[[set[str]], list[str]] = sorted
) -> ClassNames:
    """The classes that labels name; spellings with only invisible differences are one class.

    Args:
        spellings: As read; empty ones are skipped.
        sort: Puts the distinct names in order.
    """
    by_name: dict[str, set[str]] = {}
    for spelling in set(spellings):
        by_name.setdefault(clean(spelling), set()).add(spelling)
    by_name.pop("", None)
    remarks = [
        f"class '{name}' is spelled in {len(ways)} ways that look alike "
        f"({', '.join(sorted(map(ascii, ways)))}): taken as one class"
        for name, ways in sorted(by_name.items())
        if len(ways) > 1
    ]
    by_case: dict[str, list[str]] = {}
    for name in sorted(by_name):
        by_case.setdefault(name.casefold(), []).append(name)
    remarks += [
        f"classes {a_few(names)} differ only in case: kept apart; rename one if they are the same"
        for names in by_case.values()
        if len(names) > 1
    ]
    return ClassNames(sort(set(by_name)), [f"warning: {remark}" for remark in remarks])


class ByName(Generic[T]):
    """Items by name, found by any unambiguous spelling of it.

    Args:
        items: Pairs of name and item; two items may share a name.
    """

    def __init__(self, items: Iterable[tuple[str, T]] = ()) -> None:
        self._exact: dict[str, list[T]] = {}
        self._loose: dict[str, list[T]] = {}
        for name, item in items:
            self._exact.setdefault(clean(name), []).append(item)
            self._loose.setdefault(clean(name).casefold(), []).append(item)

    def __bool__(self) -> bool:
        return bool(self._exact)

    def __iter__(self) -> Iterator[str]:
        return iter(self._exact)

    def __contains__(self, name: str) -> bool:
        return bool(self.find(name))

    def find(self, name: str) -> list[T]:
        """The items with this name: none, one, or several if it is ambiguous.

        Case matters only if necessary: `A.jpg` is found as `a.jpg` unless both exist.
        """
        name = clean(name)
        return self._exact.get(name) or self._loose.get(name.casefold(), [])


class FileFinder:
    """Finds files that other programs spell differently: Unicode form, spaces, case, `\\`.

    A file is found under its exact name, else if exactly one file below `root` matches. Folders are
    listed once.

    Args:
        root: Base folder of relative names.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, ByName[str]] = {}

    def find(self, name: str) -> Path | None:
        """The file of this name; None if there is none or it is ambiguous."""
        exact = self.root / name
        if os.path.isfile(exact):  # unlike pathlib's, False for names too long
            return exact
        place = Path(exact.anchor)
        parts = re.split(r"[/\\]" if "\\" in name else "/", name)
        place, parts = (place, parts[1:]) if Path(name).is_absolute() else (self.root, parts)
        for part in parts:
            there = place / part
            if part in ("", ".", "..") or os.path.lexists(there):
                place = there
                continue
            meant = self._children(place).find(part)
            if len(meant) != 1:
                return None
            place /= meant[0]
        return place if os.path.isfile(place) else None

    def _children(self, folder: Path) -> ByName[str]:
        if folder not in self._listed:
            try:
                names = sorted(os.listdir(folder))
            except (OSError, ValueError):
                names = []
            self._listed[folder] = ByName((name, name) for name in names)
        return self._listed[folder]


def _words(name: str) -> list[str]:
    """Words of a name in lower case: `TrainSet-2017` gives train, set."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", clean(name))]
