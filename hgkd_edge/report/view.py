"""What a page is made of. Plain data: `templates/report.html.j2` draws each kind of block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

__all__ = [
    "Bar",
    "Bars",
    "Block",
    "Cell",
    "Chart",
    "Charts",
    "Facts",
    "Figure",
    "Legend",
    "Lines",
    "Matrix",
    "Note",
    "Pictures",
    "Previews",
    "Remark",
    "Section",
    "Table",
    "Tile",
    "Tone",
    "capped",
]

MOST_ROWS = 200  # of a table or a list: a hostile file may hold millions

Tone = Literal["", "good", "warn", "bad", "muted"]


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    title: str
    value: str
    about: str = ""
    tone: Tone = ""


class Note:
    """Sentences that stand out.

    Args:
        lines: At least one.
        tone: Its color.
    """

    kind = "note"

    def __init__(self, *lines: str, tone: Tone = "warn") -> None:
        self.lines, self.tone = lines, tone


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] with its interval, as a bar."""

    name: str
    share: float
    text: str
    interval: Sequence[float] | None = None
    main: bool = True


@dataclass(frozen=True)
class Bars:
    """Bars under one title."""

    title: str
    rows: Sequence[Bar]
    about: str = ""
    kind: str = "bars"


@dataclass(frozen=True)
class Cell:
    """A table cell. `badge` draws the text as a label in its tone."""

    text: str
    tone: Tone = ""
    number: bool = False
    badge: bool = False
    mono: bool = False


@dataclass(frozen=True)
class Table:
    """A table; on a phone, each row is a card headed by its first cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    about: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Legend:
    """A color of a chart and its name."""

    color: int
    name: str


@dataclass(frozen=True)
class Chart:
    """A drawing with its title and unit. `svg` is None where no plotting library is installed."""

    title: str
    unit: str
    svg: Markup | None
    about: str = ""
    legend: Sequence[Legend] = ()


@dataclass(frozen=True)
class Charts:
    """Charts next to each other; `legend` is that of all of them."""

    charts: Sequence[Chart]
    legend: Sequence[Legend] = ()
    wide: bool = False
    kind: str = "charts"


@dataclass(frozen=True)
class Figure:
    """An embedded picture."""

    name: str
    uri: Markup
    about: str = ""


@dataclass(frozen=True)
class Pictures:
    """Embedded pictures, one below the other where they are wide."""

    figures: Sequence[Figure]
    about: str = ""
    kind: str = "pictures"


@dataclass(frozen=True)
class Previews:
    """Rows of panels of equal size: each image with what student and teacher make of it."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Figure]]]
    about: str
    kind: str = "previews"


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix [true, predicted]: of each cell the text, and its shade from 0 to 10."""

    classes: Sequence[str]
    rows: Sequence[Sequence[tuple[str, int]]]
    unit: str
    kind: str = "matrix"


@dataclass(frozen=True)
class Facts:
    """Names with values."""

    rows: Sequence[tuple[str, Cell]]
    kind: str = "facts"


@dataclass(frozen=True)
class Remark:
    """A sentence in small print."""

    text: str
    kind: str = "remark"


@dataclass(frozen=True)
class Lines:
    """Preformatted text, folded under its title."""

    title: str
    lines: Sequence[str]
    kind: str = "lines"


Block = Note | Bars | Table | Charts | Pictures | Previews | Matrix | Facts | Remark | Lines


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """The `id` of the section in the page, which the table of contents links to."""
        return self.title.lower().replace(" ", "-")


def capped(rows: Iterable[Sequence[Cell]], columns: int) -> list[Sequence[Cell]]:
    """At most `MOST_ROWS` rows, with the number of the others in a last row."""
    every = list(rows)
    if len(every) <= MOST_ROWS:
        return every
    more = Cell(f"... and {len(every) - MOST_ROWS:,} more", tone="muted")
    return [*every[:MOST_ROWS], [more, *[Cell("")] * (columns - 1)]]
