"""Reasons that another library gave, in one line that a person can read."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from hgkd_edge.data.decode import Canvas, keep
from hgkd_edge.errors import reason_of


class Unreadable:
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("too wide"), "too wide"),
        (ValueError(""), "ValueError"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError("\n\n  first\nsecond"), "first"),
        (KeyError("cls"), "KeyError: 'cls'"),
        (ValueError(f"no {Unreadable()} here"), "no here"),
        (OSError(f"cannot read {io.BytesIO()!r}"), "cannot read"),
        (TypeError(f"{reason_of} is no array"), "is no array"),
        (TypeError(repr(Unreadable())), "TypeError"),
    ],
)
def test_a_reason_is_one_line_without_addresses(error: Exception, said: str) -> None:
    assert reason_of(error) == said


def test_an_image_that_is_none_says_so_without_an_object(tmp_path: Path) -> None:
    with pytest.raises(UnidentifiedImageError) as raised:
        Image.open(io.BytesIO(b"no picture"))

    assert "BytesIO" in str(raised.value), "what Pillow says"
    assert reason_of(raised.value) == "cannot identify image file"


def test_skipped_files_carry_such_reasons() -> None:
    import numpy as np

    from hgkd_edge.data.photos import Photos

    photos = Photos(["a.jpg"], np.array([0]), [b"no picture"].__getitem__, lambda i: 10)

    ((name, reason),) = keep(photos, Canvas(8, 8, exact=False), threads=1).skipped

    assert name == "a.jpg"
    assert " at 0x" not in reason
