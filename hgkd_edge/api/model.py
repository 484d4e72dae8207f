"""A fine-tuned model and its predictions, from a run or an exported file. No torch for ONNX."""

from __future__ import annotations

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps

from hgkd_edge.answering import Answer, answer_image, require_threshold
from hgkd_edge.cells import counted
from hgkd_edge.console import printable, track_steps
from hgkd_edge.data.color import to_rgb
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.predict import image_files, predict
from hgkd_edge.stages import Stages
from hgkd_edge.tables import percent
from hgkd_edge.task_model import TaskModel, open_task_model
from hgkd_edge.tasks.answers import Detection, FileAnswer, Label, load_photo

__all__ = ["AnyImage", "AnyImages", "Model", "Prediction", "Predictions", "load_model"]

AnyImage = str | os.PathLike[str] | Image.Image | np.ndarray
AnyImages = AnyImage | Iterable[AnyImage]

SHOWN = 12  # pictures of a notebook's display
SIDE = 320  # pixels, of the longer side of one


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model predicts for one image.

    Attributes:
        made: Names of the image and of the files that show the prediction, and the prediction.
        label_map: Segmentation: class of every pixel, uint8 [H, W].
    """

    made: FileAnswer
    label_map: np.ndarray | None = field(default=None, repr=False)
    _answer: Answer | None = field(default=None, repr=False)

    @property
    def photo(self) -> str:
        """The image file, or `image 0`, `image 1`, ... for images that are no files."""
        return self.made.photo

    @property
    def record(self) -> dict[str, Any]:
        """The fields of `predict --json`."""
        return self.made.to_dict()

    @property
    def labels(self) -> list[Label]:
        """Classification: (`name`, `probability`) of the most probable classes, best first.

        Of a multi-label model: all classes above the threshold.
        """
        return self.made.found.tags or self.made.found.labels or []

    @property
    def boxes(self) -> list[Detection]:
        """Detection: (`name`, `score`, `box`), the box as x1, y1, x2, y2 in image pixels."""
        return self.made.found.boxes or []

    @property
    def shares(self) -> dict[str, float]:
        """Segmentation: share of the image's area by class."""
        return self.made.found.shares or {}

    @property
    def error(self) -> str:
        """Why there is no prediction; '' where there is one."""
        return self.made.error

    @cached_property
    def picture(self) -> Image.Image | None:
        """The image with the prediction drawn into it; None if it could not be read."""
        if self._answer is not None:
            return self._answer.draw()
        return load_photo(Path(self.made.picture)) if self.made.picture else None

    def __str__(self) -> str:
        """The prediction in one line."""
        return f"{self.photo}: {self._summary()}"

    def _summary(self) -> str:
        if self.error:
            return self.error
        if self.made.found.tags is not None:
            tags = (f"{tag.name} {percent(tag.probability)}" for tag in self.labels)
            return ", ".join(tags) or "no label"
        if self.labels:
            return f"{self.labels[0].name} {percent(self.labels[0].probability)}"
        if self.shares:
            return ", ".join(
                f"{name} {percent(part)}" for name, part in self.shares.items() if part
            )
        counts = Counter(box.name for box in self.boxes)
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"

    def _repr_html_(self) -> str:
        caption = html.escape(printable(str(self)))
        if self.picture is None:
            return f"<p>{caption}</p>"
        small = self.picture.copy()
        small.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        small.save(content, "PNG")
        data = base64.b64encode(content.getvalue()).decode()
        return (
            '<figure style="display: inline-block; margin: 0 8px 8px 0; max-width: 100%">'
            f'<img alt="" style="max-width: 100%" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


class Predictions(Sequence[Prediction]):
    """One prediction per image, in order. A notebook shows the first pictures."""

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self._all = list(predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        return Predictions(self._all[index]) if isinstance(index, slice) else self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def records(self) -> list[dict[str, Any]]:
        """Plain data, as `predict --json` prints it."""
        return [one.record for one in self]

    def __repr__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        shown = "".join(one._repr_html_() for one in self[:SHOWN])
        more = len(self) - SHOWN
        return shown + (f"<p>and {more} more</p>" if more > 0 else "")


class Model:
    """A fine-tuned network, open in its runtime; `load_model` makes one.

    Attributes:
        task: `classify`, `multilabel`, `segment` or `detect`.
        classes: Class names in the order of the outputs.
        runtime: What runs it, such as `ONNX Runtime 1.22`.
    """

    def __init__(self, opened: TaskModel) -> None:
        self._opened = opened
        self.task, self.classes = opened.task, opened.classes
        self.runtime = opened.session.runtime

    def predict(
        self,
        images: AnyImages,
        *,
        out: str | os.PathLike[str] | None = None,
        threshold: float | None = None,
        save_labels: str = "",
    ) -> Predictions:
        """Predict image by image.

        Args:
            images: One or several: image files, folders of them, PIL images, or RGB arrays
                uint8 [H, W, 3]. 16-bit and float (0 to 1) PIL images are scaled as files are.
            out: Write pictures and `predictions.json` to this folder (image files only). Memory
                then does not grow with the number of images.
            threshold: Lowest score of a box, or of a label where images have several; None is
                0.4 for boxes, and for labels the model's own.
            save_labels: Also write the predictions as a data set to `out/labels`: yolo, coco, voc,
                folders or csv.

        Returns:
            One prediction per image. One that cannot be read has an `error` instead.

        Raises:
            DataError: There are no images, none can be read, or one is not an image.
        """
        chosen = _listed(images)
        if out is not None:
            return self._predict_to(chosen, Path(out), threshold, save_labels)
        if save_labels:
            raise DataError("save_labels writes to a folder: name it", hint="out='predictions'")
        require_threshold(self._opened, threshold)
        found: list[Prediction] = []
        sources = list(_sources(chosen))
        with track_steps("predicting", total=len(sources)) as show:
            for number, (name, source) in enumerate(sources):
                found.append(self._predict_one(name, source, threshold))
                show(number + 1, "")
        if all(one.error for one in found):
            none = f"none of {counted(len(found), 'image')} could be processed"
            raise DataError(f"{none}; first: {found[0]}")
        return Predictions(found)

    def _predict_to(
        self, images: Sequence[AnyImage], out: Path, threshold: float | None, save_labels: str
    ) -> Predictions:
        if not all(isinstance(image, (str, os.PathLike)) for image in images):
            raise DataError(
                "out takes image files", hint="remove out, and save each prediction.picture"
            )
        paths = [Path(image) for image in images]  # type: ignore[arg-type]
        made = predict(self._opened, paths, out, threshold=threshold, save_as=save_labels)
        return Predictions(map(Prediction, made))

    def _predict_one(
        self, name: str, source: Path | Image.Image, threshold: float | None
    ) -> Prediction:
        try:
            bits = self._opened.input.bits
            if isinstance(source, Path):
                photo = load_photo(source, bits=bits)
            else:
                photo = _upright(source, bits)
            answer = answer_image(self._opened, photo, threshold, Stages())
        except DataError as error:
            reason = reason_of(error).removeprefix(f"{name}: ")
            return Prediction(FileAnswer(name, error=reason))
        return Prediction(FileAnswer(name, answer.found), answer.label_map, answer)


def load_model(path: str | os.PathLike[str], *, trust_engine: bool = False) -> Model:
    """Open a fine-tuned model.

    Args:
        path: `model.safetensors` (PyTorch), `.onnx` (ONNX Runtime), `.xml` (OpenVINO), `.plan` or
            `.engine` (TensorRT; its ONNX file must lie next to it), or a run's folder or name.
        trust_engine: Load an engine although it was not built on this machine: it is machine code.

    Raises:
        RunError: There is no such file, it is not a fine-tuned model of hgkd-edge, or differs from
            its run's record.
        MissingPackageError: Its runtime is not installed.

    Example:
        `hgkd_edge.load_model("runs/demo/export/demo.fp32.onnx").predict("cat.jpg")[0].labels`
    """
    return Model(open_task_model(Path(path), trust_engine=trust_engine))


def _listed(images: AnyImages) -> list[AnyImage]:
    single = isinstance(images, (str, os.PathLike, Image.Image))
    if single or (isinstance(images, np.ndarray) and images.ndim == 3):
        return [images]  # type: ignore[list-item]
    return list(images)  # type: ignore[arg-type]


def _sources(images: Sequence[AnyImage]) -> Iterable[tuple[str, Path | Image.Image]]:
    """Name and file, or name and image, of everything to predict."""
    if not images:
        raise DataError("no images to predict", hint="name files, folders, or give images")
    for number, image in enumerate(images):
        if isinstance(image, (str, os.PathLike)):
            yield from ((str(file), file) for file in image_files([Path(image)]))
            continue
        name = f"image {number}"
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(
                    f"{name} is {image.dtype}{list(image.shape)}", hint="RGB uint8 [H, W, 3]"
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise DataError(
                f"{name} is a {type(image).__name__}", hint="a path, a PIL image or an array"
            )
        yield name, image


def _upright(image: Image.Image, bits: int) -> Image.Image:
    """An image as RGB, in its displayed orientation; `bits` as for `load_photo`.

    Raises:
        DataError: Its pixels are out of range.
    """
    try:
        return to_rgb(ImageOps.exif_transpose(image), bits=bits or 16)
    except ValueError as error:
        raise DataError(f"cannot be read as an image: {error}") from error
