"""What a training writes and shows while it runs: `log.jsonl`, trackers, the progress line."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator

from hgkd_edge.console import track_steps, warn
from hgkd_edge.data.decode import StreamedPixels
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine.checkpoint import fix_for
from hgkd_edge.engine.interface import Observation, Workplace
from hgkd_edge.errors import TrainingError
from hgkd_edge.files import atomic_write, open_regular
from hgkd_edge.parsing import MAX_LOG_BYTES, parse_json, read_file

__all__ = ["Journal", "open_journal", "rate_in"]

PROJECT = "hgkd-edge"  # project name in wandb and mlflow
WINDOW = 50  # batches over which data waiting time is measured
WORTH_SHOWING, STARVING = 0.1, 0.2  # shares of the time


class Journal:
    """Writes and shows the metrics of each batch; on the main process only."""

    def __init__(
        self,
        accelerator: Accelerator,
        stream: TextIO,
        log_file: Path,
        show: Callable[[int, str], None],
        source: ImageSource,
    ) -> None:
        self.accelerator, self.stream, self.log_file = accelerator, stream, log_file
        self.show, self.source = show, source
        self.recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.warned = False
        self.begun, self.photos = time.perf_counter(), 0
        self.observed = ""

    def record(
        self,
        *,
        step: int,
        epoch: int,
        scalars: dict[str, float],
        lr: float,
        photos: int,
        seconds: float,
        waited: float,
    ) -> None:
        """Record one batch.

        Args:
            step: Updates done.
            epoch: Epoch of the batch, from 0.
            scalars: Scalars of its last update, including "loss".
            lr: Learning rate of that update.
            photos: Number of images in the batch, over all processes.
            seconds: From the request for the batch to the end of its last update.
            waited: How many of those seconds were spent waiting for the batch.
        """
        figures = {
            "epoch": epoch,
            **scalars,
            "lr": lr,
            "images_per_s": round(photos / seconds, 1),
            "data_share": round(waited / seconds, 3),
        }
        with _writing(self.log_file):
            self.stream.write(json.dumps({"step": step, **figures}) + "\n")
            self.stream.flush()
            self.accelerator.log(figures, step=step)
        share = self._share_waiting(seconds, waited)
        self.photos += photos
        # Of all the time since the start: evaluation, checkpoints and waiting are in it.
        rate = self.photos / (time.perf_counter() - self.begun)
        line = f"loss {scalars['loss']:.4f}  {rate:.0f} img/s"
        if self.observed:
            line += f"  {self.observed}"
        if share > WORTH_SHOWING:
            line += f"  waiting for images {share:.0%}"
        self.show(step, line)

    def observe(self, step: int, observation: Observation) -> None:
        """Record the held-out scores of a model after `step` updates."""
        self.observed = observation.text
        with _writing(self.log_file):
            self.stream.write(json.dumps({"step": step, **observation.scores}) + "\n")
            self.stream.flush()
            self.accelerator.log(dict(observation.scores), step=step)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    pictures = {name: each.cpu() for name, each in observation.pictures.items()}
                    tracker.log_images(pictures, step=step)

    def _share_waiting(self, seconds: float, waited: float) -> float:
        """Share of time spent waiting in the last batches; warns once if it is too high."""
        self.recent.append((seconds, waited))
        share = sum(w for _, w in self.recent) / sum(s for s, _ in self.recent)
        if share > STARVING and len(self.recent) == WINDOW and not self.warned:
            self.warned = True
            warn(
                f"the student waits for images {share:.0%} of the time; "
                f"hint: {_fix_starving(self.source)}"
            )
        return share


@contextlib.contextmanager
def open_journal(
    place: Workplace,
    accelerator: Accelerator,
    source: ImageSource,
    *,
    label: str,
    total: int,
    done: int,
) -> Iterator[Journal | None]:
    """The journal of a training of `total` steps, `done` of them before; None off the main process.

    Raises:
        TrainingError: The log cannot be written.
    """
    if not accelerator.is_main_process:
        yield None
        return
    with _writing(place.log_file):
        _truncate(place.log_file, done)
        place.log_file.parent.mkdir(parents=True, exist_ok=True)
        stream = _open_log(place.log_file)
        if place.tracker_dir is not None:
            accelerator.init_trackers(PROJECT)
    try:
        with track_steps(label, total=total, done=done) as show:
            yield Journal(accelerator, stream, place.log_file, show, source)
    finally:
        with contextlib.suppress(OSError):  # a full disk was already reported
            stream.close()
            for tracker in accelerator.trackers:
                tracker.finish()


def _open_log(file: Path) -> TextIO:
    """Open the log for appending; never through a link."""
    with open_regular(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
        return open(os.dup(descriptor), "a", encoding="utf-8")


@contextlib.contextmanager
def _writing(log_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"log {log_file} cannot be written: {error.strerror or error}",
            hint=fix_for(error, log_file),
        ) from error


def _truncate(log_file: Path, step: int) -> None:
    """Cut the log at the checkpoint, so that repeated steps are not logged twice."""
    if log_file.is_file():
        with atomic_write(log_file) as temporary:
            temporary.write_text("".join(_lines_up_to(log_file, step)), encoding="utf-8")


def _lines_up_to(log_file: Path, step: int) -> Iterator[str]:
    """Lines of a log whose step is at most `step`; stops at a line cut off by a kill.

    Raises:
        TrainingError: The file is too large to be a log.
    """
    try:
        content = read_file(log_file, MAX_LOG_BYTES)
    except ValueError as error:
        raise TrainingError(f"log {log_file} {error}", hint="move it elsewhere") from error
    for line in content.splitlines(keepends=True):
        try:
            text = line.decode()
            if parse_json(text)["step"] > step:
                return
        except (ValueError, KeyError, TypeError):
            return
        yield text


def rate_in(log_file: Path) -> float:
    """Images per second in a training's log, evaluation excluded: the median of its later half."""
    records = [parse_json(line) for line in _lines_up_to(log_file, sys.maxsize)]
    rates = [record["images_per_s"] for record in records if "images_per_s" in record]
    return statistics.median(rates[len(rates) // 2 :])


def _fix_starving(source: ImageSource) -> str:
    if isinstance(source.images, StreamedPixels):
        return (
            f"more cores or data.workers (now {source.images.threads}), images stored at about "
            "twice data.image_size, a faster disk, or data.decode=once"
        )
    return "decoded images are in a temporary file: set TMPDIR to a faster disk"
