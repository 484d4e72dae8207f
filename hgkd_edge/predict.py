"""What a fine-tuned model says of photos: labels, maps or boxes, as JSON and as pictures.

Works from the base install for ONNX files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from exporters.runtimes import Outputs
from hgkd_edge.console import console, track_steps
from hgkd_edge.data.photos import find_images
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.rundir import write_json
from hgkd_edge.task_model import TaskModel, open_task_model
from hgkd_edge.tasks import answers, pictures
from hgkd_edge.tasks.saved_labels import require_format, save_labels

__all__ = ["image_files", "predict"]

Answer = tuple[dict[str, Any], Image.Image]
Answerer = Callable[[TaskModel, Outputs, Image.Image, float], Answer]


def predict(
    model: Path,
    photos: Sequence[Path],
    folder: Path,
    *,
    threshold: float = answers.THRESHOLD,
    trust_engine: bool = False,
    save_as: str = "",
) -> list[dict[str, Any]]:
    """Answer photos one by one; a picture of each answer, and `predictions.json`, go to a folder.

    Args:
        model: What `open_task_model` takes.
        photos: Image files, or folders of them.
        folder: Where pictures and JSON go.
        threshold: Lowest score of a box.
        trust_engine: As for `open_task_model`.
        save_as: Also write the answers as a data set in this format, to `labels/` in the folder.

    Returns:
        One record per photo: `photo`, `picture`, and `labels`, `shares` of the area by class and
        the `map` file, or `boxes` (x1, y1, x2, y2 in pixels of the photo). A photo that cannot be
        read has an `error` instead.

    Raises:
        RunError: The model cannot be opened.
        DataError: There are no photos, none can be read, or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder}: is a file", hint="name a folder")
    files = list(image_files(photos, but=folder))
    opened = open_task_model(model, trust_engine=trust_engine)
    _check_threshold(opened, threshold)
    if save_as:
        require_format(save_as, opened.task)
    console.print(f"{opened.task} with {opened.session.runtime}, {len(opened.classes)} classes")
    records = []
    with track_steps("predicting", total=len(files)) as show:
        for i, file in enumerate(files):
            name = pictures.picture_name(i, file).removesuffix(".png")
            records.append(_answer(opened, file, folder / name, threshold))
            show(i + 1, "")
    if all("error" in record for record in records):
        first = f"the first, {records[0]['photo']}: {records[0]['error']}"
        raise DataError(f"none of {len(records)} photos could be answered; {first}")
    write_json(folder / "predictions.json", records)
    if save_as:
        target = folder / "labels"
        count = save_labels(records, opened.classes, target, format=save_as, threshold=threshold)
        console.print(f"labels of {count} of {len(records)} images: {target}", soft_wrap=True)
    return records


def _check_threshold(model: TaskModel, threshold: float) -> None:
    """Refuse a threshold below the one that suppression inside the file was given."""
    inside = model.task == "detect" and "postprocessing" in model.baked
    if inside and threshold < answers.THRESHOLD:
        raise DataError(
            f"--threshold {threshold:g}: the file keeps boxes of at least {answers.THRESHOLD:g}",
            hint="name the file without baked postprocessing of the same export",
        )


def _answer(model: TaskModel, file: Path, target: Path, threshold: float) -> dict[str, Any]:
    """One photo's record; whatever is wrong with a photo is its record's `error`."""
    try:
        photo = answers.load_photo(file, bits=model.input.bits)
        outputs = model.outputs(photo)
        record, picture = ANSWERERS[model.task](model, outputs, photo, threshold)
    except Exception as error:  # a damaged file may raise anything, in any library on the way
        reason = reason_of(error)
        return {"photo": str(file), "error": reason.removeprefix(f"{file}: ")}
    saved = pictures.save_picture(picture, target.with_name(f"{target.name}.png"))
    if (label_map := record.pop("label_map", None)) is not None:
        plain = Image.fromarray(label_map)
        record["map"] = str(
            pictures.save_picture(plain, target.with_name(f"{target.name}-map.png"))
        )
    return {"photo": str(file), "picture": str(saved), **record}


def _classify(model: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    if "postprocessing" in model.baked:
        labels = answers.rank_classes(outputs["probabilities"][0], model.classes)
    else:
        labels = answers.read_classify(outputs["logits"][0], model.classes)
    return {"labels": [label._asdict() for label in labels]}, pictures.draw_labels(
        photo, labels[:1]
    )


def _segment(model: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    placement = model.input.placement(photo)
    if "postprocessing" in model.baked:
        found = answers.read_class_map(outputs["classes"][0], placement)  # uint8 [H, W]
    else:
        found = answers.read_segment(outputs["logits"][0], placement)
    counts = np.bincount(found.ravel(), minlength=len(model.classes))
    shares = dict(zip(model.classes, (counts / found.size).tolist(), strict=True))
    return {"shares": shares, "label_map": found}, pictures.draw_segments(photo, found)


def _detect(model: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    placement, classes = model.input.placement(photo), model.classes
    if "postprocessing" in model.baked:
        rows = outputs["detections"]  # of all images of the batch, here one
        found = answers.read_detections(rows, placement, classes, threshold=threshold)
    else:
        boxes, scores = outputs["boxes"][0], outputs["scores"][0]
        found = answers.read_detect(boxes, scores, placement, classes, threshold=threshold)
    return {"boxes": [box._asdict() for box in found]}, pictures.draw_boxes(photo, found, classes)


ANSWERERS: dict[str, Answerer] = {"classify": _classify, "segment": _segment, "detect": _detect}


def image_files(photos: Sequence[Path], *, but: Path) -> Iterator[Path]:
    """The files named, and the image files in the folders named, those in `but` left out.

    Raises:
        DataError: One does not exist, or there is no image at all.
    """
    found = 0
    for path in photos:
        if path.is_dir():
            images = find_images(path)
            if remark := images.remark(path):
                console.print(remark, soft_wrap=True, markup=False)
            inside = [path / name for name in images.names]
            inside = [file for file in inside if but.resolve() not in file.resolve().parents]
        elif path.is_file():
            inside = [path]
        else:
            raise DataError(f"{path}: there is no such file or folder")
        found += len(inside)
        yield from inside
    if not found:
        raise DataError(f"no image files in {', '.join(map(str, photos))}")
