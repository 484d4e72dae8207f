"""`bench --pipeline`: how long the stages around a network take, on image files. No torch for ONNX.

`bench` measures the network alone; an application also decodes, preprocesses and postprocesses.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from hgkd_edge.answering import answer_image
from hgkd_edge.cells import counted
from hgkd_edge.console import console
from hgkd_edge.predict import image_files
from hgkd_edge.records import Record
from hgkd_edge.stages import Stages
from hgkd_edge.task_model import open_task_model
from hgkd_edge.tasks import answers

__all__ = ["PipelineTimes", "measure_pipeline"]

WARM_UP = 3  # images processed before measuring


class PipelineTimes(Record):
    """How long a pipeline took.

    Attributes:
        images: Measured images.
        frames_per_s: From file to prediction.
        infer_frames_per_s: Of the network alone.
        stages: Milliseconds by stage, as `Stages.summary`.
    """

    model: Path
    task: str
    runtime: str
    images: int
    seconds: float
    frames_per_s: float
    infer_frames_per_s: float
    stages: dict[str, dict[str, float]]


def measure_pipeline(
    model: Path,
    images: Sequence[Path],
    *,
    duration_s: float,
    count: int | None = None,
    trust_engine: bool = False,
) -> PipelineTimes:
    """Process image files one by one, as `predict` does, without writing anything.

    Args:
        model: What `open_task_model` takes.
        images: Image files, or folders of them; repeated until the time is up.
        duration_s: Seconds to measure.
        count: Images to measure, instead of `duration_s`.
        trust_engine: As for `open_task_model`.

    Raises:
        RunError: The model cannot be opened.
        DataError: There are no images, or one cannot be processed.
    """
    files = list(image_files(images, but=Path("predictions")))
    opened = open_task_model(model, trust_engine=trust_engine)
    console.print(
        f"{opened.task} with {opened.session.runtime}, {counted(len(files), 'image')}",
        soft_wrap=True,
    )

    def answer(file: Path, stages: Stages) -> None:
        with stages.measure("decode"):
            photo = answers.load_photo(file, bits=opened.input.bits)
        answer_image(opened, photo, None, stages)

    for file in itertools.islice(itertools.cycle(files), WARM_UP):
        answer(file, Stages())
    stages, measured, begun = Stages(), 0, time.perf_counter()
    for file in itertools.cycle(files):
        answer(file, stages)
        measured += 1
        seconds = time.perf_counter() - begun
        if measured == count or (count is None and seconds >= duration_s):
            break
    summary = stages.summary()
    return PipelineTimes(
        model=model,
        task=opened.task,
        runtime=opened.session.runtime,
        images=measured,
        seconds=seconds,
        frames_per_s=measured / seconds,
        infer_frames_per_s=1e3 / summary["infer"]["mean"],
        stages=summary,
    )
