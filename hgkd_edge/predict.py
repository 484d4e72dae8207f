"""Predictions of a fine-tuned model: labels, maps or boxes, as JSON and as pictures.

Works from the base install for ONNX files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from hgkd_edge.answering import answer_image, require_threshold
from hgkd_edge.cells import counted
from hgkd_edge.console import console, track_steps
from hgkd_edge.data.find_images import find_images
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.files import remove_leftovers, require_writable_folder, write_json
from hgkd_edge.stages import Stages
from hgkd_edge.task_model import TaskModel, open_task_model
from hgkd_edge.tasks import answers, pictures
from hgkd_edge.tasks.answers import FileAnswer
from hgkd_edge.tasks.saved_labels import require_savable, save_labels

__all__ = ["answer_file", "image_files", "predict"]


def predict(
    model: Path | TaskModel,
    photos: Sequence[Path],
    folder: Path,
    *,
    threshold: float | None = None,
    trust_engine: bool = False,
    save_as: str = "",
) -> list[FileAnswer]:
    """Predict image by image; write pictures and `predictions.json` to a folder.

    Args:
        model: An open model, or what `open_task_model` takes.
        photos: Image files, or folders of them.
        folder: Output folder for pictures and JSON.
        threshold: Lowest score of a box or a label; None is the model's own.
        trust_engine: As for `open_task_model`.
        save_as: Also write the predictions as a data set in this format, to `labels/` in the
            folder.

    Returns:
        One answer per image; that of an unreadable image has an `error`.

    Raises:
        RunError: The model cannot be opened.
        DataError: There are no images, none can be read, `folder` is a file or one of the folders
            of images, or `save_as` cannot store the model's answers, or `labels/` in the folder is
            not empty.
        ExportError: `folder` cannot be written to.
    """
    _require_apart(folder, photos)
    files = list(image_files(photos, but=folder))
    opened = model
    if isinstance(opened, Path):
        opened = open_task_model(opened, trust_engine=trust_engine)
    if threshold is None:
        threshold = opened.threshold
    require_threshold(opened, threshold)
    if save_as:
        require_savable(save_as, opened.task, opened.classes, folder / "labels")
    require_writable_folder(folder / "predictions.json")
    remove_leftovers(folder)
    classes = counted(len(opened.classes), "class", "classes")
    console.print(f"{opened.task} with {opened.session.runtime}, {classes}")
    made, stages = list[FileAnswer](), Stages()
    with track_steps("predicting", total=len(files)) as show:
        for i, file in enumerate(files):
            name = pictures.picture_name(i, file).removesuffix(".png")
            made.append(answer_file(opened, file, folder / name, threshold, stages))
            show(i + 1, "")
    if all(one.error for one in made):
        first = f"the first, {made[0].photo}: {made[0].error}"
        raise DataError(f"none of {counted(len(made), 'image')} could be processed; {first}")
    write_json(folder / "predictions.json", [one.to_dict() for one in made])
    if save_as:
        target = folder / "labels"
        count = save_labels(made, opened.classes, target, format=save_as, threshold=threshold)
        of = counted(len(made), "image")
        console.print(f"labels of {count} of {of}: {target}", soft_wrap=True)
    return made


def _require_apart(folder: Path, photos: Sequence[Path]) -> None:
    """Reject an output folder that is a file, or one of the folders of images."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder}: is a file", hint="name a folder")
    if folder.resolve() in [path.resolve() for path in photos]:
        raise DataError(
            f"--out {folder}: is a folder of images; the next call would predict the pictures too",
            hint="name another folder with --out",
        )


def answer_file(
    opened: TaskModel, file: Path, target: Path, threshold: float | None, stages: Stages
) -> FileAnswer:
    """The answer for one image; any problem with the image is its `error`.

    Args:
        opened: The model.
        file: The image file.
        target: Path of the output pictures, without suffix.
        threshold: As for `answer_image`.
        stages: Collects the times of all stages.
    """
    try:
        with stages.measure("decode"):
            photo = answers.load_photo(file, bits=opened.input.bits)
        answer = answer_image(opened, photo, threshold, stages)
        with stages.measure("write"):
            picture = answer.draw()
    except Exception as error:  # a damaged file may raise anything, in any library
        return FileAnswer(str(file), error=reason_of(error).removeprefix(f"{file}: "))
    with stages.measure("write"):
        saved = str(pictures.save_picture(picture, target.with_name(f"{target.name}.png")))
        label_map = ""
        if answer.label_map is not None:
            plain = Image.fromarray(answer.label_map)
            map_file = target.with_name(f"{target.name}-map.png")
            label_map = str(pictures.save_picture(plain, map_file))
    return FileAnswer(str(file), answer.found, picture=saved, map=label_map)


def image_files(photos: Sequence[Path], *, but: Path | None = None) -> Iterator[Path]:
    """The named files and the image files in the named folders.

    Args:
        photos: Files and folders.
        but: Output folder; where it lies below a named folder, its images are skipped.

    Raises:
        DataError: A path does not exist, or there is no image.
    """
    found = 0
    for path in photos:
        if path.is_dir():
            images = find_images(path)
            if remark := images.remark(path):
                console.print(remark, soft_wrap=True, markup=False)
            inside = [path / name for name in images.names]
            if but is not None and path.resolve() in but.resolve().parents:
                inside = [file for file in inside if but.resolve() not in file.resolve().parents]
        elif path.is_file():
            inside = [path]
        else:
            raise DataError(f"{path}: no such file or folder")
        found += len(inside)
        yield from inside
    if not found:
        raise DataError(f"no image files in {', '.join(map(str, photos))}")
