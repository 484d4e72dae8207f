"""A matplotlib figure as inline SVG whose colors are those of the page, in light and in dark.

matplotlib writes colors and fonts into style attributes, which the page's policy forbids. Here
every color of `INK` becomes a CSS class, and only paths and texts are kept.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "SERIES", "inline_svg"]

SERIES = 8  # colors of curves and points; the ninth is the first again
# What a figure is drawn with -> the class that the style sheet colors.
INK = {
    **{f"series{i}": f"#0000{16 + i:02x}" for i in range(SERIES)},
    **{name: f"#0000{i:02x}" for i, name in enumerate(("text", "line", "axis", "ground"), 1)},
}
_CLASS = {color: name for name, color in INK.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_KEPT = ("stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "text-anchor")
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, label: str) -> Markup:
    """The figure as an `svg` element.

    Args:
        figure: Drawn in the colors of `INK`.
        label: What it shows, for screen readers.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata=_METADATA)
    root = ElementTree.fromstring(stream.getvalue())
    shapes = {path.get("id"): path for path in root.iterfind(f".//{_SVG}defs/{_SVG}path")}
    body = Markup("").join(_drawn(root, shapes))
    return Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">{}</svg>').format(
        root.get("viewBox"), label, body
    )


def _drawn(
    parent: ElementTree.Element, shapes: dict[str | None, ElementTree.Element]
) -> Iterator[Markup]:
    for element in parent:
        tag = element.tag.removeprefix(_SVG)
        if tag == "g":
            yield from _drawn(element, shapes)
        elif tag == "path":
            yield _path(element, _style(element))
        elif tag == "use":  # a marker
            shape = shapes[str(element.get(_HREF))[1:]]
            moved = f"translate({element.get('x')} {element.get('y')})"
            yield _path(shape, _style(shape) | _style(element), transform=moved)
        elif tag == "text":
            kept = {key: element.get(key) for key in ("x", "y", "transform")}
            yield Markup("<text{}>{}</text>").format(
                _attributes({"fill": INK["text"], **_style(element)}, **kept), element.text or ""
            )


def _path(shape: ElementTree.Element, style: dict[str, str], **more: str) -> Markup:
    if style.get("fill") == "none" and "stroke" not in style:
        return Markup("")  # the background
    line = " ".join((shape.get("d") or "").split())
    return Markup("<path{}/>").format(_attributes(style, d=line, **more))


def _style(element: ElementTree.Element) -> dict[str, str]:
    parts = (part.partition(":") for part in (element.get("style") or "").split(";"))
    return {name.strip(): value.strip() for name, _, value in parts}


def _attributes(style: dict[str, str], **more: str | None) -> Markup:
    """Attributes of an element: its colors as classes, the rest of its style one by one."""
    classes = [
        f"{kind}-{_CLASS[style[kind]]}" for kind in ("fill", "stroke") if style.get(kind) in _CLASS
    ]
    found = {**more, "class": " ".join(classes) or None}
    found |= {key: style[key] for key in _KEPT if key in style}
    if style.get("fill") == "none":
        found["fill"] = "none"
    return Markup("").join(
        Markup(' {}="{}"').format(key, value) for key, value in found.items() if value
    )
