"""Fonts for class names in any script: an installed one with the glyphs, else escaped text."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

from hgkd_edge.console import warn

__all__ = ["drawable", "font_file", "readable"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
ABSENT = "\U0010ffff"  # in no font: shows the glyph drawn for missing characters
LAST_RESORT = "LastResort"  # a font with one placeholder glyph per script
SIZE = 16  # pixels at which glyphs are compared
STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono")  # tried last
# Files tried first because they cover many scripts.
BROAD = ("notosanscjk", "sourcehansans", "droidsansfallback", "wqy", "arialuni", "dejavusans")


def drawable(text: str, size: int) -> tuple[str, Font]:
    """Text that can be drawn, and a font that draws it.

    If no installed font has the glyphs, characters are escaped (`\\u732b`), which is reported.
    """
    own = _own(size)
    if not _missing(text, own):
        return text, own
    if (file := font_file(text)) is not None:
        return text, ImageFont.truetype(file, size)
    return escaped(text), own


def escaped(text: str) -> str:
    """The text in ASCII; reported once per text."""
    _report(text)
    return text.encode("ascii", "backslashreplace").decode()


def font_file(text: str) -> str | None:
    """An installed font with all characters of a text; None if there is none.

    Text that Pillow's built-in font can draw needs none.
    """
    missing = _missing(text, _own(SIZE))
    return _file_with(text) if missing else None


def readable(text: str) -> str:
    """The text, escaped if no installed font can draw it."""
    own = _own(SIZE)
    return text if not _missing(text, own) or font_file(text) else escaped(text)


@functools.lru_cache(maxsize=1024)
def _file_with(text: str) -> str | None:
    for file in _files():
        try:
            font = ImageFont.truetype(file, SIZE)
            if not _missing(text, font):
                return file
        except OSError:  # not scalable, or damaged
            continue
    return None


@functools.cache
def _own(size: int) -> Font:
    """Pillow's built-in font: ASCII."""
    return ImageFont.load_default(size)


def _glyph(font: Font, character: str) -> bytes:
    """The glyph that a font draws for a character; empty if it is blank."""
    ink = bytes(font.getmask(character))
    return ink if any(ink) else b""


def _missing(text: str, font: Font) -> str:
    """Characters of a text that a font has no glyph for."""
    absent = _glyph(font, ABSENT)
    return "".join(
        character
        for character in dict.fromkeys(text)
        if character.isprintable()
        and not character.isspace()
        and _glyph(font, character) in (b"", absent)
    )


@functools.cache
def _files() -> tuple[str, ...]:
    """Font files on this machine, those with many scripts first."""
    found = sorted(
        os.path.join(folder, name)
        for top in _folders()
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf")) and not name.startswith(LAST_RESORT)
    )
    return tuple(sorted(found, key=_preference))


def _preference(file: str) -> tuple[bool, bool]:
    name = Path(file).name.lower()
    broad = any(part in name.replace("-", "").replace("_", "") for part in BROAD)
    return not broad, any(style in name for style in STYLES)


def _folders() -> Iterator[Path]:
    home = Path(os.path.expanduser("~"))
    yield from (home / ".fonts", home / ".local/share/fonts")
    yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
    if sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
    if (matplotlib := importlib.util.find_spec("matplotlib")) and matplotlib.origin:
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"


@functools.lru_cache(maxsize=1024)
def _report(text: str) -> None:
    shown = text.replace("\n", ", ")
    warn(
        f"no installed font can draw '{shown}': pictures show it escaped; "
        "hint: install one, such as Debian's fonts-noto-cjk"
    )
