"""Pictures of a run, as data URIs: small files as they are, large ones as smaller WebP files."""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hgkd_edge.console import warn
from hgkd_edge.data.images import open_image
from hgkd_edge.errors import RunError, reason_of
from hgkd_edge.report.view import Figure, Pictures, Previews, Section
from hgkd_edge.rundir import RunDir

__all__ = ["previews_section", "task_pictures"]

MOST_PICTURES_BYTES = 2**23  # of all pictures in a page, as embedded
_AS_IT_IS = 2**17  # bytes of a picture that is not made smaller
_WIDEST = 1600  # pixels of a picture that is made smaller
_PNG = b"\x89PNG\r\n\x1a\n"
_CAPTIONS = {
    "segment": "image, ground truth, prediction",
    "detect": "ground truth, prediction",
}
_PANELS = {
    "image": "image",
    "visible": "what the student sees",
    "teacher": "teacher's features",
    "student": "student's prediction",
    "cosine": "their cosine",
}


class _About(BaseModel):
    """The content of `previews.json`; unknown entries are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    split: str
    mask_ratio: float
    sites: str
    cosine: list[float] = Field(max_length=64)


@dataclass
class _Room:
    """The bytes that a page's pictures may still take."""

    left: int = field(default_factory=lambda: MOST_PICTURES_BYTES)

    def take(self, size: int) -> bool:
        self.left -= size
        return self.left >= 0


def previews_section(run: RunDir) -> Section | None:
    """Images, their visible patches, and the features of teacher and student.

    Raises:
        RunError: `previews.json` is damaged.
    """
    file = run.previews_dir / "previews.json"
    if not file.is_file():
        return None
    try:
        about = _About.model_validate(run.read_json(file))
    except ValidationError as error:
        raise RunError(
            f"{file}: is damaged: {error.errors()[0]['msg']}",
            hint=f"remove it: rm {shlex.quote(str(file))}",
        ) from error
    room, rows = _Room(), []
    for number, cosine in enumerate(about.cosine):
        files = {name: run.previews_dir / f"{number}-{name}.webp" for name in _PANELS}
        if not all(map(Path.is_file, files.values())):
            continue
        figures = [_figure(run, each, room, name) for name, each in files.items()]
        if any(figure is None for figure in figures):
            break
        rows.append((f"cosine {cosine:.2f}", [figure for figure in figures if figure]))
    if not rows:
        return None
    masked = (
        f"{about.mask_ratio:.0%} of each is masked" if about.mask_ratio else "nothing is masked"
    )
    text = (
        f"Images of the {about.split} split; {masked}. The "
        "directions of features are shown by three principal components: equal colors are equal "
        f"directions. The number is the mean cosine over {about.sites} tokens. Color of a cosine: "
    )
    return Section("What the student sees", [Previews(list(_PANELS.values()), rows, text)])


def task_pictures(run: RunDir) -> Iterator[Pictures]:
    """The PNG files of a run's task, such as overlays; files that only have the suffix are skipped.

    The confusion matrix is part of the page, so its picture is skipped.
    """
    room, figures = _Room(), []
    for file in sorted(run.pictures_dir.glob("*.png")):
        if not file.is_file() or file.stem == "confusion":
            continue
        if (figure := _figure(run, file, room, file.stem.replace("-", " "))) is not None:
            figures.append(figure)
        elif room.left < 0:
            warn(f"{file}: the report is full: it and later pictures are not shown")
            break
    if figures:
        kinds = {re.split("[ -]", figure.name)[0] for figure in figures}
        about = [f"{kind}: {_CAPTIONS[kind]}" for kind in sorted(kinds & _CAPTIONS.keys())]
        yield Pictures(figures, "; ".join(about))


def _figure(run: RunDir, file: Path, room: _Room, name: str) -> Figure | None:
    """A picture, if it is one and there is room for it."""
    content = run.read_bytes(file)
    if content.startswith(_PNG):
        kind = "png"
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    if len(content) > _AS_IT_IS:
        try:
            kind, content = "webp", _smaller(content)
        except Exception as error:  # a broken file may raise anything
            warn(f"{file}: is not a picture: {reason_of(error)}")
            return None
    encoded = base64.b64encode(content).decode()
    if not room.take(len(encoded)):
        return None
    return Figure(name, Markup(f"data:image/{kind};base64,{encoded}"))


def _smaller(content: bytes) -> bytes:
    """A picture as WebP of at most `_WIDEST` pixels a side."""
    with open_image(content) as image:
        picture = image.convert("RGB")
    picture.thumbnail((_WIDEST, _WIDEST))
    stream = io.BytesIO()
    picture.save(stream, format="webp", quality=80)
    return stream.getvalue()
