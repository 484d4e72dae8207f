"""Predictions saved as a data set are unchanged when read by the formats' own readers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.survey import survey
from hgkd_edge.tasks.answers import Detection, FileAnswer, Found, Label
from hgkd_edge.tasks.saved_labels import require_savable, save_labels
from tests.data.annotated import boxes
from tests.data.image_files import save_image

CLASSES = ["cat", "dög & <co>"]


def records(folder: Path) -> list[FileAnswer]:
    """Three answers: two boxes, none, and one on an image that EXIF turns; and a failed image."""
    found = [
        [(CLASSES[0], 0.9, (10.0, 5.0, 30.0, 25.0)), (CLASSES[1], 0.5, (0.0, 0.0, 64.0, 48.0))],
        [],
        [(CLASSES[1], 0.7, (2.0, 3.0, 40.0, 60.0))],
    ]
    answers = []
    for i, own in enumerate(found):
        file = folder / f"image {i}.png"
        save_image(file, np.full((48, 64, 3), 40 * i, np.uint8))
        if i == 2:
            exif = Image.Exif()
            exif[0x0112] = 6  # turned by 90 degrees: 48 x 64 upright
            with Image.open(file) as image:
                image.copy().save(file, exif=exif)
        found_ = Found(boxes=[Detection(*box) for box in own])
        picture = str(folder / f"{i:04d}-image.png")
        answers.append(FileAnswer(str(file), found_, picture=picture))
    return [*answers, FileAnswer(str(folder / "broken.png"), error="cannot be read")]


@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_saved_boxes_are_read_again_as_they_were(tmp_path: Path, format: str) -> None:
    answers = records(tmp_path / "images")

    count = save_labels(answers, CLASSES, tmp_path / "out", format=format, threshold=0.4)

    source = boxes(tmp_path / "out", size=(64, 64), holdout=0)["train"]
    assert (count, source.classes, source.skipped) == (3, CLASSES, [])
    by_name = {
        Path(name).stem: rows[rows[:, 0] >= 0].tolist()
        for name, rows in zip(source.names, source.labels, strict=True)
    }
    wanted = {
        "0000-image": [[0, 10, 5, 30, 25], [1, 0, 0, 64, 48]],
        "0001-image": [],
        "0002-image": [[1, 2, 3, 40, 60]],  # in pixels of the upright image
    }
    assert by_name.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert np.allclose(by_name[name], rows, atol=0.01)


def test_classes_are_saved_as_folders_from_a_threshold_on(tmp_path: Path) -> None:
    labels = (Label("cat", 0.9), Label("dog", 0.3), Label("dog", 0.6))
    answers = [
        replace(one, found=Found(labels=[label]))
        for one, label in zip(records(tmp_path / "images")[:3], labels, strict=True)
    ]

    count = save_labels(answers, ["cat", "dog"], tmp_path / "out", format="folders", threshold=0.5)

    found = survey(DataConfig(path=tmp_path / "out", holdout=0))
    assert count == 2
    assert found.splits["train"].objects == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ""])
def test_a_class_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        save_labels([], [name, "b"], tmp_path / "out", format="folders", threshold=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["yolo", "coco", "voc", "folders"])
@pytest.mark.parametrize("name", ["e\x1b[2J", "nl\nb", "\ud800", "x" * 300])
def test_a_class_that_no_file_can_hold_is_refused_before_anything_is_written(
    tmp_path: Path, format: str, name: str
) -> None:
    with pytest.raises(DataError, match="class .* cannot"):
        save_labels([], [name], tmp_path / "out", format=format, threshold=0)
    assert not (tmp_path / "out").exists()


def test_images_whose_names_are_not_utf8_are_saved(tmp_path: Path) -> None:
    (answer,) = records(tmp_path / "images")[:1]
    odd = tmp_path / "images" / os.fsdecode(b"caf\xe9.p\xe9g")
    Path(answer.photo).rename(odd)
    answers = [replace(answer, photo=str(odd))]

    for format in ("yolo", "coco", "voc"):
        assert save_labels(answers, CLASSES, tmp_path / format, format=format, threshold=0) == 1


@pytest.mark.parametrize(
    ("format", "task", "message"),
    [
        ("yolov8", "detect", "unknown; one of yolo, coco, voc, folders"),
        ("folders", "detect", "the model's task is detect.*yolo or coco or voc"),
        ("yolo", "classify", "the model's task is classify.*use folders"),
        ("coco", "segment", "the model's task is segment.*label maps"),
    ],
)
def test_a_format_that_cannot_hold_the_answers_is_refused(
    tmp_path: Path, format: str, task: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        require_savable(format, task, CLASSES, tmp_path)
