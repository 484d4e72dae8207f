"""A fine-tuned model and its metadata. Needs torch only for PyTorch files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from exporters import runtimes
from exporters.onnx_info import onnx_info, require_image_input
from exporters.runtimes import Outputs, Session
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.errors import DataError, MissingPackageError, RunError
from hgkd_edge.files import engines_dir, file_sha256
from hgkd_edge.run_files import require_recorded
from hgkd_edge.rundir import RUNS, RunDir
from hgkd_edge.tasks.answers import GEOMETRY
from hgkd_edge.tasks.metadata import ModelMetadata, weights_digest
from hgkd_edge.tasks.suppression import THRESHOLD

__all__ = ["TaskModel", "open_task_model"]


@dataclass(frozen=True)
class TaskModel:
    """A network that was trained for a task.

    Attributes:
        session: The open network. It takes normalized images f32[B, 3, H, W], or frames
            u8[B, H, W, 3] where preprocessing is baked in.
        task: `classify`, `multilabel`, `segment` or `detect`.
        classes: Class names in the order of the outputs.
        input: Its input and preprocessing.
        baked: What was baked into the file: `preprocessing`, `postprocessing`.
        frame: Height and width of its frames, where preprocessing is baked in for one frame size.
        threshold: Lowest score of a box or a label unless another is asked for.
    """

    session: Session
    task: str
    classes: tuple[str, ...]
    input: InputSpec
    baked: frozenset[str] = frozenset()
    frame: tuple[int, int] | None = None
    threshold: float = THRESHOLD

    def outputs(self, photo: Image.Image) -> Outputs:
        """The network's outputs by name for an upright RGB image, batch of one.

        Raises:
            DataError: The image does not have the frame size of the model.
        """
        return self.session.run(self.prepare(photo))

    def prepare(self, photo: Image.Image) -> np.ndarray:
        """An upright RGB image as the network's input, batch of one.

        Raises:
            DataError: The image does not have the frame size of the model.
        """
        if "preprocessing" not in self.baked:
            return self.input.array(photo)
        if self.frame not in (None, (photo.height, photo.width)):
            height, width = self.frame or ()
            raise DataError(
                f"is {photo.width} x {photo.height}: the model takes frames of {width} x {height}",
                hint="name the plain file of the same export",
            )
        return np.asarray(photo)[None]


def open_task_model(path: Path, *, trust_engine: bool = False) -> TaskModel:
    """Open a fine-tuned model.

    Arguments and errors: see `hgkd_edge.load_model`.
    """
    named = not path.exists() and (RUNS / path).is_dir()  # a run's name may hold a dot
    if not path.suffix or path.is_dir() or named:
        path = _model_of(RunDir.resolve(path))
    known = (*OPENERS, *ENGINES)
    if path.suffix not in known:
        raise RunError(
            f"{path}: not a model file", hint=f"name a run folder or one of {', '.join(known)}"
        )
    if not path.is_file():
        raise RunError(f"{path}: no such file", hint="make a model: hgkd-edge finetune")
    require_recorded(path)
    if path.suffix in ENGINES:
        return _open_engine(path, trusted=trust_engine)
    return OPENERS[path.suffix](path)


def _model_of(run: RunDir) -> Path:
    """A run's fine-tuned model; without PyTorch, the ONNX file exported from it."""
    model = run.require(run.model_file, fix=f"hgkd-edge finetune {run.quoted}")
    if importlib.util.find_spec("torch") is not None:
        return model
    exported = run.export_dir / f"{run.path.resolve().name}.fp32.onnx"
    if not exported.is_file():
        raise MissingPackageError(f"predicting with {model}", extra="train", package="torch")
    if weights_digest(onnx_info(exported).metadata) != file_sha256(model):
        raise RunError(
            f"{exported}: was not exported from the run's present model",
            hint=f"export it again where PyTorch is installed: hgkd-edge export {run.quoted}",
        )
    return exported


def _open_torch(path: Path) -> TaskModel:
    from hgkd_edge.finetune import TASKS, load_model

    network, card = load_model(path)
    session = runtimes.open(network, names=TASKS[card.task].output_names)
    threshold = THRESHOLD if card.threshold is None else card.threshold
    return TaskModel(session, card.task, card.classes, card.input, threshold=threshold)


def _open_onnx(path: Path) -> TaskModel:
    info = onnx_info(path)
    require_image_input(path, info)
    return _described(path, info.metadata, runtimes.open(path))


def _open_openvino(path: Path) -> TaskModel:
    session = runtimes.open(path)
    return _described(path, session.metadata, session)


def _open_engine(path: Path, *, trusted: bool) -> TaskModel:
    source = path.with_suffix(".onnx")
    if not source.is_file():
        raise RunError(
            f"{path}: an engine does not record its classes",
            hint=f"put the ONNX file that it was built from next to it, as {source.name}",
        )
    require_recorded(source)
    session = runtimes.open(path, made_from=source, built_here=engines_dir(), trust_engine=trusted)
    return _described(path, onnx_info(source).metadata, session)


OPENERS: dict[str, Callable[[Path], TaskModel]] = {
    ".safetensors": _open_torch,
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
}
ENGINES = (".plan", ".engine")


def _described(path: Path, metadata: Mapping[str, str], session: Session) -> TaskModel:
    """The model of an open file, as its metadata describe it."""
    try:
        found = ModelMetadata.read(metadata)
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"{path}: does not record its task and classes",
            hint="fine-tune the run and export it: hgkd-edge finetune, hgkd-edge export",
        ) from error
    if found.task not in GEOMETRY:
        raise RunError(
            f"{path}: is a backbone without a task: it makes no predictions",
            hint="fine-tune the run and export it: hgkd-edge finetune, hgkd-edge export",
        )
    return TaskModel(
        session=session,
        task=found.task,
        classes=found.classes,
        input=found.input,
        baked=found.baked,
        frame=found.frame,
        threshold=THRESHOLD if found.threshold is None else found.threshold,
    )
