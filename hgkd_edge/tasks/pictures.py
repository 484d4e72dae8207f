"""Draws a model's answers and scores on images: boxes, maps, the confusion matrix. No torch."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hgkd_edge.data.color import row_blocks
from hgkd_edge.data.names import readable as printable_name
from hgkd_edge.data.resize import IGNORED
from hgkd_edge.files import atomic_write
from hgkd_edge.tasks.answers import Detection, Label
from hgkd_edge.tasks.fonts import drawable, font_file, readable

__all__ = [
    "draw_boxes",
    "draw_confusion",
    "draw_labels",
    "draw_segments",
    "picture_name",
    "save_picture",
    "side_by_side",
]


LONGEST_NAME = 100  # limit in bytes on the part of a file name taken from an image's name


def picture_name(number: int, image: Path) -> str:
    """PNG file name for an image, unique even for equal or long image names."""
    stem = printable_name(image.stem).encode()[:LONGEST_NAME].decode(errors="ignore")
    return f"{number:04d}-{stem}.png"


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix: rows are true classes, shades are shares of the row.

    Args:
        confusion: Counts, int [classes, classes], [true, predicted].
        classes: Class names.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(16.0, max(4.0, 0.45 * len(classes) + 2))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 60:  # more names would not be legible
        names = [readable(name).replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            if (file := font_file(label.get_text())) is not None:
                label.set_fontproperties(FontProperties(fname=file, size=label.get_fontsize()))
    if len(classes) <= 30:  # more numbers would not be legible
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def draw_labels(photo: Image.Image, labels: Sequence[Label]) -> Image.Image:
    """A copy of the image, with its most probable classes above it, or all of its labels."""
    picture = photo.copy()
    if not labels:
        return picture
    size = _text_size(picture)
    text = "\n".join(f"{label.probability:.0%} {label.name}" for label in labels)
    _write(ImageDraw.Draw(picture), (0, 0), text, size, (0, 0, 0))
    return picture


def draw_boxes(
    photo: Image.Image, found: Sequence[Detection], classes: Sequence[str], *, scored: bool = True
) -> Image.Image:
    """A copy of the image with a frame around every object, in its class's color.

    True objects have no score to show: pass `scored=False`.
    """
    picture = photo.copy()
    draw, size = ImageDraw.Draw(picture), _text_size(picture)
    for name, score, box in reversed(found):  # draw the best on top
        color = _color(classes.index(name))
        draw.rectangle(box, outline=color, width=max(1, size // 6))
        text = f"{name} {score:.2f}" if scored else name
        _write(draw, (box[0], max(0, box[1] - size)), text, size, color)
    return picture


def draw_segments(photo: Image.Image, labels: np.ndarray) -> Image.Image:
    """A copy of the image tinted by class, uint8 [H, W]; class 0 and ignored pixels stay as is."""
    table = np.array([_color(label) for label in range(256)], np.float32)  # [256, 3]
    pixels = np.array(photo)  # [H, W, 3]
    for rows in row_blocks(pixels):
        tinted = 0.5 * pixels[rows] + 0.5 * table[labels[rows]]
        shown = (labels[rows] != 0) & (labels[rows] != IGNORED)
        pixels[rows] = np.where(shown[..., None], tinted, pixels[rows])
    return Image.fromarray(pixels)


def side_by_side(pictures: Sequence[Image.Image], *, gap: int = 4) -> Image.Image:
    """Images of equal height in a row."""
    width = sum(picture.width + gap for picture in pictures) - gap
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG file, creating its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="png")
    return path


def _color(label: int) -> tuple[int, int, int]:
    """A class's color: hues a golden section apart, so that adjacent classes differ."""
    red, green, blue = colorsys.hsv_to_rgb(0.33 + label * 0.618034, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _text_size(picture: Image.Image) -> int:
    return max(9, min(picture.size) // 32)


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    size: int,
    ground: tuple[int, int, int],
) -> None:
    """Text on a colored background: black on light colors, white on dark colors."""
    text, font = drawable(text, size)
    draw.rectangle(draw.multiline_textbbox(corner, text, font=font), fill=ground)
    draw.multiline_text(corner, text, font=font, fill="black" if sum(ground) > 300 else "white")
