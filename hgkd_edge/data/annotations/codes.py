"""The pixel values of label maps, and the class that each value stands for.

Tools write classes as 0, 1, 2, ... or as gray levels such as 0, 128, 255. They write pixels without
a class as 255 or not at all. So all label maps are inspected before training reads any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hgkd_edge.data.color import row_blocks
from hgkd_edge.data.resize import IGNORED
from hgkd_edge.errors import DataError

__all__ = ["Codes", "Coding", "Ignore", "Tally", "binary_labels", "fixed_coding", "settle_coding"]

Codes = Literal["auto", "numbers"] | Sequence[int]
Ignore = Literal["auto", "none"] | int

LOOKED_AT = 400  # side in pixels of a label map when checked for borders
BORDERS = 0.5  # min. share of a code's pixels between two other codes to count as a border
RARE = 0.2  # largest share of 255 taken for "no class given" without being a border
SPACING = 2  # allowed deviation of evenly spaced codes, in gray levels
LISTED = 12  # codes that are printed one by one
MANY = 64  # codes that suggest masks with blended edges


@dataclass(frozen=True)
class Coding:
    """Which pixel value of a label map is which class.

    Attributes:
        codes: Class i is written as `codes[i]`.
        names: Class names.
        ignored: The code of pixels without a class, if there is one.
    """

    codes: tuple[int, ...]
    names: tuple[str, ...]
    ignored: int | None

    def labels(self, pixels: np.ndarray) -> np.ndarray:
        """Codes of a label map, integers [H, W], as classes, uint8 [H, W]; 255 is ignored.

        Raises:
            ValueError: A number is not a code.
        """
        table = np.full(256, -1, np.int16)
        table[list(self.codes)] = np.arange(len(self.codes))
        if self.ignored is not None:
            table[self.ignored] = IGNORED
        codes = in_range(pixels)
        labels = np.empty(codes.shape, np.uint8)
        for rows in row_blocks(codes):
            found = table[codes[rows]]
            self._require_known(codes[rows][found < 0])
            labels[rows] = found
        return labels

    def _require_known(self, strange: np.ndarray) -> None:
        if len(strange):
            code = int(strange.max())
            if self.codes == tuple(range(len(self.codes))):
                raise ValueError(f"mask holds class {code}, classes.txt names {len(self.codes)}")
            shown = ", ".join(map(str, self.codes))
            raise ValueError(f"mask holds code {code}; segment.codes are {shown}")

    def settings(self) -> dict[str, object]:
        """The settings that fix this coding."""
        ignore = "none" if self.ignored is None else self.ignored
        return {"segment.codes": list(self.codes), "segment.ignore": ignore}


def in_range(pixels: np.ndarray) -> np.ndarray:
    """The same numbers, checked to be valid in a label map.

    Raises:
        ValueError: A number is below 0 or above 255.
    """
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 255:
        raise ValueError(
            f"mask holds number {high if high > 255 else low}; codes of classes are 0 to 255 "
            "(segment.binary=true takes all numbers above 0 as one class)"
        )
    return pixels.astype(np.uint8)


def binary_labels(pixels: np.ndarray, ignore: Ignore) -> np.ndarray:
    """1 for every number except 0, uint8 [H, W]; an ignored code must be given explicitly."""
    labels = (pixels > 0).astype(np.uint8)
    if isinstance(ignore, int):
        labels[pixels == ignore] = IGNORED
    return labels


class Tally(NamedTuple):
    """Pixel counts of label maps.

    Attributes:
        pixels: Number of pixels by code, int64 [256].
        marked: Pixels of code 255 that were checked.
        between: Checked pixels with two other codes nearby, as on borders.
    """

    pixels: np.ndarray
    marked: int = 0
    between: int = 0

    @classmethod
    def of(cls, codes: np.ndarray) -> Tally:
        """The tally of one label map, uint8 [H, W]."""
        pixels = np.zeros(256, np.int64)
        for rows in row_blocks(codes):
            pixels += np.bincount(codes[rows].ravel(), minlength=256)
        return cls(pixels, *(_between(codes) if pixels[IGNORED] else ()))

    @classmethod
    def sum(cls, tallies: Sequence[Tally]) -> Tally:
        """The sum of several tallies."""
        pixels = np.zeros(256, np.int64)
        for tally in tallies:
            pixels += tally.pixels
        return cls(pixels, sum(t.marked for t in tallies), sum(t.between for t in tallies))

    @property
    def present(self) -> list[int]:
        """All codes that occur."""
        return np.flatnonzero(self.pixels).tolist()

    def share(self, code: int) -> float:
        """A code's share of all pixels."""
        return float(self.pixels[code] / max(1, self.pixels.sum()))


def fixed_coding(names: Sequence[str], codes: Codes, ignore: Ignore, root: Path) -> Coding | None:
    """The coding given by the settings; None if the label maps must be inspected.

    Raises:
        DataError: `classes.txt` has a different number of classes than there are codes.
    """
    if isinstance(codes, str) or ignore == "auto":
        return None
    if names and len(names) != len(codes):
        raise DataError(
            f"{root}: classes.txt names {len(names)} classes, segment.codes has {len(codes)} codes",
            hint="give every class one code, in the order of classes.txt",
        )
    return _coding(codes, names, None if ignore == "none" else int(ignore))


def settle_coding(
    tallies: dict[str, Tally], names: Sequence[str], codes: Codes, ignore: Ignore, root: Path
) -> tuple[Coding, str]:
    """The coding of inspected label maps, and a one-line description of what was decided.

    Args:
        tallies: Tallies by split.
        names: From `classes.txt`, one line per code 0, 1, ...; or empty.
        codes: `segment.codes`: `auto` makes every code that occurs a class, `numbers` takes codes
            as class numbers, gaps included.
        ignore: `segment.ignore`.
        root: The folder, for messages.

    Raises:
        DataError: It is unclear whether 255 is a class, or only background occurs.
    """
    tally = Tally.sum(list(tallies.values()))
    ignored, why = _ignored(tally, names, codes, ignore, root)
    objects = set(tally.present) - {0, ignored}
    if isinstance(codes, str):
        if names:
            codes = range(len(names))
        elif not objects and any(tally.pixels):
            raise DataError(
                f"{root}: its masks hold no class but {_listed(tally.present)}"
                + (f" ({ignored} is ignored)" if ignored in tally.present else ""),
                hint="--set segment.ignore=none makes the ignored code a class",
            )
        elif codes == "numbers":
            codes = range(max(objects, default=0) + 1)
        else:
            codes = sorted(objects | ({0} - {ignored}))
    coding = fixed_coding(names, tuple(codes), "none" if ignored is None else ignored, root)
    assert coding is not None, "codes and the ignored one are known"
    return coding, _remark(tallies, tally, coding, why)


def _coding(codes: Sequence[int], names: Sequence[str], ignored: int | None) -> Coding:
    classes = names or ["background" if code == 0 else f"class {code}" for code in codes]
    return Coding(tuple(codes), tuple(classes), ignored)


def _ignored(
    tally: Tally, names: Sequence[str], codes: Codes, ignore: Ignore, root: Path
) -> tuple[int | None, str]:
    """The code to ignore, and why."""
    if ignore == "none":
        return None, "segment.ignore=none"
    if ignore != "auto":
        return int(ignore), f"segment.ignore={ignore}"
    if not isinstance(codes, str):
        return (None if IGNORED in codes else IGNORED), "by segment.codes"
    if names:
        return IGNORED, "classes.txt names no such class"
    if codes == "numbers":
        return IGNORED, "segment.codes=numbers"
    others = [code for code in tally.present if code != IGNORED]
    if IGNORED not in tally.present:
        return None, ""
    if not set(others) - {0}:
        return None, "no other code is an object"
    if _evenly_spaced(tally.present):
        return None, "the codes are evenly spaced gray levels"
    if tally.between >= BORDERS * tally.marked:
        return IGNORED, "it lies along borders of other codes"
    numbers = 2 * len({0, *others}) > max(others)  # at least half of 0, 1, 2, ... occur
    if numbers and tally.share(IGNORED) <= RARE:
        return IGNORED, "the other codes are small numbers, and it is rare"
    raise DataError(
        f"{root}: label maps hold codes {_listed(tally.present)}: whether 255 "
        f"({tally.share(IGNORED):.1%} of the pixels) is a class or is ignored is not clear",
        hint="--set segment.ignore=255 ignores it, --set segment.ignore=none makes it a class",
    )


def _evenly_spaced(codes: Sequence[int]) -> bool:
    """Whether codes divide 0 to 255 into equal steps, as tools do for a small number of classes."""
    ideal = np.linspace(0, 255, len(codes))
    return bool(np.abs(np.array(codes) - ideal).max() <= SPACING)


def _between(codes: np.ndarray) -> tuple[int, int]:
    """The number of pixels of code 255, and how many of them have two other codes nearby."""
    step = max(1, max(codes.shape) // LOOKED_AT)
    small = codes[::step, ::step].astype(np.int16)
    marked = small == IGNORED
    reach = max(4, max(small.shape) // 50)
    highest = _spread(np.where(marked, -1, small), reach, np.maximum)
    lowest = _spread(np.where(marked, 256, small), reach, np.minimum)
    return int(marked.sum()), int((marked & (lowest < highest)).sum())


def _spread(
    values: np.ndarray, reach: int, best: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The maximum or minimum within `reach` pixels in each direction, [H, W]."""
    for _ in range(reach):
        for axis in (0, 1):
            line = np.moveaxis(values, axis, 0)
            spread = line.copy()
            spread[1:] = best(spread[1:], line[:-1])
            spread[:-1] = best(spread[:-1], line[1:])
            values = np.moveaxis(spread, 0, axis)
    return values


def _remark(tallies: dict[str, Tally], tally: Tally, coding: Coding, why: str) -> str:
    present = tally.present
    parts = [f"label maps hold codes {_listed(present, tally, coding)}"]
    if IGNORED in present and coding.ignored is None:
        parts.append(f"255 is a class: {why} (segment.ignore=255 ignores it)")
    elif coding.ignored in present:
        share = f"{tally.share(coding.ignored):.1%} of the pixels"
        parts.append(f"{coding.ignored} is ignored ({share}): {why} (or segment.ignore=none)")
    training = tallies["train"].present if "train" in tallies else present
    if unseen := sorted(set(present) - set(training) - {coding.ignored}):
        parts.append(f"not in the training split: {_listed(unseen)}")
    if len(present) > MANY:
        parts.append("so many codes may come from masks with blended edges")
    return "; ".join(parts)


def _listed(codes: Sequence[int], tally: Tally | None = None, coding: Coding | None = None) -> str:
    """Codes with their meaning, if known."""
    shown = []
    for code in codes:
        name = ""
        if tally and coding and code in coding.codes:
            name = f" ({coding.names[coding.codes.index(code)]}, {tally.share(code):.1%})"
        shown.append(f"{code}{name}")
    if len(shown) > LISTED:
        shown[LISTED - 1 : -1] = ["..."]
    return ", ".join(shown)
