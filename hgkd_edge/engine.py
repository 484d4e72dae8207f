"""The one training loop: schedule, EMA, checkpoints, resume, trackers, progress.

Pre-training, distillation and fine-tuning each bring a `Task`; nothing here knows which. Resume is
exact because a step has no memory: the order of photos is a function of (seed, epoch), every
random number a function of (seed, step), the learning rate a function of the step. A checkpoint is
weights, optimizer moments, EMA and the step number.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hgkd_edge.console import console, track_steps
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.errors import Interrupted, RecipeError, TrainingError
from hgkd_edge.recipe import TrainConfig
from hgkd_edge.rundir import atomic_write

__all__ = ["Draws", "Task", "Workplace", "resolve_precision", "train"]


class Task(Protocol):
    """What a training verb brings to the loop.

    Attributes:
        model: The trained module; `model(*inputs)` returns scalars by name, "loss" among them.
        updates_per_batch: How many updates `inputs` makes of one batch.
        layer_decay: Factor of the learning rate per group of layers below the head, as timm groups
            them; None trains every layer at one rate.
    """

    model: nn.Module
    updates_per_batch: int
    layer_decay: float | None

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterable[tuple[Tensor, ...]]:
        """Inputs of the model, one tuple per update, every tensor [B, ...].

        Args:
            images: uint8 [B, 3, H_canvas, W_canvas] on the device.
            labels: int64 [B], -1 where unlabelled.
            draws: This step's random numbers.
        """
        ...


@dataclass
class Draws:
    """Random numbers of one step, drawn for the global batch and cut to this process's share.

    Drawn on the CPU, so that every device and every number of processes sees the same ones.
    """

    generator: torch.Generator
    rank: int
    world: int
    device: torch.device

    def uniform(self, count: int, width: int) -> Tensor:
        """float32 [count, width] in [0, 1), for `count` images on this process."""
        draws = torch.rand(count * self.world, width, generator=self.generator)
        return draws[self.rank * count : (self.rank + 1) * count].to(self.device)


@dataclass(frozen=True)
class Workplace:
    """Where a training writes: its log, its checkpoint, its trackers' folder."""

    log_file: Path
    checkpoint_file: Path
    tracker_dir: Path | None = None
    resume_command: str = ""


def resolve_precision(precision: str) -> str:
    """`auto` becomes bf16 where the CPU or GPU computes in it, else fp32.

    Raises:
        RecipeError: fp16 is asked for on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    if precision == "auto":
        has_bf16 = (
            torch.cuda.is_bf16_supported()
            if on_gpu
            else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        return "bf16" if has_bf16 else "fp32"
    if precision == "fp16" and not on_gpu:
        raise RecipeError("train.precision = 'fp16': needs a GPU", hint="use bf16, fp32 or auto")
    return precision


def train(
    task: Task,
    source: ImageSource,
    config: TrainConfig,
    *,
    seed: int,
    place: Workplace,
    label: str,
    resume: bool = False,
) -> nn.Module:
    """Train `task.model` on the photos of a source.

    Args:
        task: The model and how a batch becomes its inputs.
        source: Training photos.
        config: The recipe's `train` section.
        seed: Seeds photo order and random numbers.
        place: Where logs and checkpoints go.
        label: Shown beside the progress bar.
        resume: Go on from the checkpoint, if there is one.

    Returns:
        The averaged (EMA) model, or the model itself when `config.ema` is 0, on the device.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
        TrainingError: The loss is not finite, or a checkpoint cannot be written.
        RecipeError: The batch does not divide among processes and accumulation steps.
    """
    return _Loop(task, source, config, seed=seed, place=place, label=label).run(resume=resume)


class _Loop:
    """State of one training: everything that a checkpoint holds, and how to make a step of it."""

    def __init__(
        self,
        task: Task,
        source: ImageSource,
        config: TrainConfig,
        *,
        seed: int,
        place: Workplace,
        label: str,
    ) -> None:
        self.task, self.source, self.config = task, source, config
        self.seed, self.place, self.label = seed, place, label
        self.accelerator = _accelerator(config, place)
        self.batch_size = min(config.batch_size, len(source))
        shares = self.accelerator.num_processes * config.accumulate
        if self.batch_size % shares:
            raise RecipeError(
                f"train.batch_size = {self.batch_size}: does not divide among "
                f"{self.accelerator.num_processes} processes x {config.accumulate} "
                "accumulation steps",
                hint=f"use {max(shares, self.batch_size // shares * shares)}",
            )
        self.batches_per_epoch = len(source) // self.batch_size
        self.steps_per_epoch = self.batches_per_epoch * task.updates_per_batch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0

        model = task.model.to(self.accelerator.device)
        optimizer = create_optimizer_v2(
            model,
            config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.95),
            layer_decay=task.layer_decay,
        )
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def run(self, *, resume: bool) -> nn.Module:
        if resume and self.place.checkpoint_file.is_file():
            self._load_checkpoint()
        self._truncate_log()
        self.model.train()
        with (
            _stop_on_signal() as stop,
            track_steps(self.label, total=self.total_steps, done=self.step) as show,
            self._log() as log,
        ):
            for epoch in range(self.step // max(1, self.steps_per_epoch), self.config.epochs):
                self._run_epoch(epoch, log, show, stop)
                if (epoch + 1) % self.config.checkpoint_every == 0:
                    self._save_checkpoint()
        self._save_checkpoint()
        self.accelerator.end_training()
        return self.ema.module if self.ema else self.accelerator.unwrap_model(self.model)

    def _run_epoch(self, epoch: int, log: _Log, show: Any, stop: _StopFlag) -> None:
        first = (self.step - epoch * self.steps_per_epoch) // self.task.updates_per_batch
        clock = time.perf_counter()
        for indices in self._batches(epoch)[first:]:
            scalars, data_seconds = self._train_batch(indices)
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            images_per_s = len(indices) * self.accelerator.num_processes / seconds
            log.write(
                step=self.step,
                epoch=epoch,
                **scalars,
                lr=self._lr(self.step - 1),
                images_per_s=round(images_per_s, 1),
                data_share=round(data_seconds / seconds, 3),
            )
            show(self.step, f"loss {scalars['loss']:.4f}  {images_per_s:.0f} img/s")
            if self._told_to_stop(stop):
                self._save_checkpoint()
                raise Interrupted(
                    f"stopped at step {self.step} of {self.total_steps}, progress saved to "
                    f"{self.place.checkpoint_file}",
                    hint=f"go on: {self.place.resume_command}",
                )

    def _batches(self, epoch: int) -> Tensor:
        """This process's indices of every batch of an epoch, int64 [batches, B_local]."""
        order = torch.randperm(len(self.source), generator=_generator(self.seed, "order", epoch))
        order = order[: self.batches_per_epoch * self.batch_size]
        shares = order.view(self.batches_per_epoch, self.accelerator.num_processes, -1)
        return shares[:, self.accelerator.process_index]

    def _train_batch(self, indices: Tensor) -> tuple[dict[str, float], float]:
        """All updates of one batch; the last update's scalars, and seconds spent on its inputs."""
        device, rank = self.accelerator.device, self.accelerator.process_index
        begin = time.perf_counter()
        images = self.source.images[indices].to(device, non_blocking=True)  # uint8 [B, 3, H, W]
        labels = self.source.labels[indices].to(device, non_blocking=True)
        data_seconds = time.perf_counter() - begin
        generator = _generator(self.seed, "step", self.step)
        torch.manual_seed(generator.initial_seed() + rank)  # what layers draw: stochastic depth
        draws = Draws(generator, rank, self.accelerator.num_processes, device)
        with self.accelerator.autocast():
            updates = list(self.task.inputs(images, labels, draws))
        scalars: dict[str, float] = {}
        for inputs in updates:
            scalars = self._update(inputs)
        return scalars, data_seconds

    def _update(self, inputs: tuple[Tensor, ...]) -> dict[str, float]:
        """One optimizer step on one global batch, its gradient summed over accumulation chunks."""
        lr = self._lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        parts = self.config.accumulate
        chunks = zip(*(tensor.chunk(parts) for tensor in inputs), strict=True)
        totals: dict[str, float] = {}
        for i, chunk in enumerate(chunks):
            last = i == parts - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                outputs = self.model(*chunk)
                for name, value in outputs.items():
                    totals[name] = totals.get(name, 0.0) + value.item() / parts
                self._check_finite(totals["loss"], lr)
                self.accelerator.backward(outputs["loss"] / parts)
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.step)
        return totals

    def _check_finite(self, loss: float, lr: float) -> None:
        """Stop before a bad gradient reaches the weights; the last checkpoint stays as it was."""
        if math.isfinite(loss):
            return
        saved = self.place.checkpoint_file
        kept = (
            f"last good checkpoint: {saved}" if saved.is_file() else "no checkpoint was saved yet"
        )
        raise TrainingError(
            f"loss is {loss} at step {self.step} (learning rate {lr:.2e}); {kept}",
            hint="lower the rate, such as --set train.lr="
            f"{self.config.lr / 3:.1e}, or use --set train.precision=fp32",
        )

    def _lr(self, step: int) -> float:
        """Linear warm-up, then cosine to zero (or constant)."""
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return self.config.lr * (step + 1) / (warmup + 1)
        if self.config.schedule == "constant":
            return self.config.lr
        progress = (step - warmup) / max(1.0, self.total_steps - warmup)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _told_to_stop(self, stop: _StopFlag) -> bool:
        """Whether any process was told to stop; all processes get the same answer."""
        if self.accelerator.num_processes == 1:
            return stop.asked
        if stop.asked:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _save_checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "scaler": scaler.state_dict() if scaler else None,
        }
        try:
            with atomic_write(self.place.checkpoint_file) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise TrainingError(
                f"checkpoint {self.place.checkpoint_file} cannot be written at step {self.step}: "
                f"{error}; the previous checkpoint is untouched",
                hint=f"free disk space, then go on: {self.place.resume_command}",
            ) from error

    def _load_checkpoint(self) -> None:
        device = self.accelerator.device
        state = torch.load(self.place.checkpoint_file, map_location=device, weights_only=True)
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema and state["ema"]:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        console.print(f"{self.label}: going on from step {self.step} of {self.total_steps}")

    def _truncate_log(self) -> None:
        """Keep the log up to the checkpoint: steps done again must not stand there twice."""
        if not (self.accelerator.is_main_process and self.place.log_file.is_file()):
            return
        with atomic_write(self.place.log_file) as temporary:
            temporary.write_text("".join(_lines_up_to(self.place.log_file, self.step)))

    @contextlib.contextmanager
    def _log(self) -> Iterator[_Log]:
        if self.place.tracker_dir is not None:
            self.accelerator.init_trackers("tensorboard")
        self.place.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.place.log_file.open("a", encoding="utf-8") as stream:
            yield _Log(self.accelerator, stream)


class _Log:
    """Writes each record to `log.jsonl` and to the trackers, on the main process."""

    def __init__(self, accelerator: Accelerator, stream: Any) -> None:
        self.accelerator, self.stream = accelerator, stream

    def write(self, *, step: int, **figures: float) -> None:
        if not self.accelerator.is_main_process:
            return
        self.stream.write(json.dumps({"step": step, **figures}) + "\n")
        self.stream.flush()
        self.accelerator.log(figures, step=step)


@dataclass
class _StopFlag:
    asked: bool = False


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[_StopFlag]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one ends the process at once."""
    flag = _StopFlag()

    def ask(number: int, frame: Any) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.asked = True
        console.print("stopping after this step (again to stop at once) ...")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _accelerator(config: TrainConfig, place: Workplace) -> Accelerator:
    precision = resolve_precision(config.precision)
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(config.trackers) if place.tracker_dir else None,
        project_config=ProjectConfiguration(
            project_dir=str(place.tracker_dir), logging_dir=str(place.tracker_dir)
        )
        if place.tracker_dir
        else None,
    )


def _generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    salt = {"order": 0, "step": 1}[purpose]
    return torch.Generator().manual_seed(seed * 1_000_003 + index * 2 + salt)


def _lines_up_to(log_file: Path, step: int) -> Iterator[str]:
    """Lines of a log whose step is at most `step`; a line cut off by a kill ends it."""
    for line in log_file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step:
                return
        except (ValueError, KeyError):
            return
        yield line
