"""The loop itself: steps, the moving average of the weights, checkpoints, resume."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hgkd_edge.console import console
from hgkd_edge.data.decode import read_ahead
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine.batches import channels_last, chunks, global_batch
from hgkd_edge.engine.checkpoint import TrainingState, read_checkpoint, write_checkpoint
from hgkd_edge.engine.exchange import average_gradients, same_start
from hgkd_edge.engine.graph import graphed_pass
from hgkd_edge.engine.interface import Draws, Inputs, Training, Watch, Workplace
from hgkd_edge.engine.journal import Journal, open_journal
from hgkd_edge.engine.late import Batch, Figures, Snapshot, Update, reads_late
from hgkd_edge.engine.memory import naming_batch_size
from hgkd_edge.engine.optimizer import make_optimizer
from hgkd_edge.engine.schedule import learning_rate
from hgkd_edge.engine.seeds import generator_of
from hgkd_edge.engine.setup import keep_freed_memory, make_accelerator
from hgkd_edge.engine.sync_batchnorm import SyncedBatchNorm
from hgkd_edge.engine.watching import Watching, epochs_between_looks
from hgkd_edge.errors import Interrupted, TrainingError
from hgkd_edge.processes import heeding_others, on_main
from hgkd_edge.recipe_sections import TrainConfig
from hgkd_edge.stopping import StopFlag, stop_on_signal

__all__ = ["train"]

STOP, NORM = "stop", "gradient norm"  # metrics of an update in addition to the model's


def train(
    training: Training,
    source: ImageSource,
    config: TrainConfig,
    *,
    seed: int,
    place: Workplace,
    label: str,
    resume: bool = False,
    until: int | None = None,
    watch: Watch | None = None,
) -> nn.Module:
    """Train `training.model` on the images of a source, in one or several processes.

    Args:
        training: The model, and how a batch is turned into its inputs.
        source: Training images.
        config: The recipe's `train` section.
        seed: Seeds image order and random numbers.
        place: Where logs and checkpoints go.
        label: Shown next to the progress bar.
        resume: Resume from the checkpoint, if there is one.
        until: Stop after the batch in which this many updates are reached, with a checkpoint to
            resume from; None trains to the end.
        watch: Scores the (averaged) model every `config.evaluate_every` epochs, on the main
            process; must not change it.

    Returns:
        The averaged (EMA) model, or the model itself when `config.ema` is 0, on the device.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
        TrainingError: The loss is not finite, memory is full, or a checkpoint or the log cannot be
            written.
        RunError: The checkpoint cannot be resumed.
        RecipeError: The batch does not divide among processes and accumulation steps.
    """
    with naming_batch_size(config.batch_size, place.batch_key):
        loop = _Loop(training, source, config, seed=seed, place=place, label=label)
        loop.last_step = loop.total_steps if until is None else min(until, loop.total_steps)
        epochs = epochs_between_looks(config, images=len(source))
        loop.watching = Watching(watch, every=epochs * loop.steps_per_epoch)
        return loop.run(resume=resume)


class _Loop:
    """State of one training: everything that a checkpoint holds, and how to make a step."""

    def __init__(
        self,
        training: Training,
        source: ImageSource,
        config: TrainConfig,
        *,
        seed: int,
        place: Workplace,
        label: str,
    ) -> None:
        self.training, self.source, self.config = training, source, config
        self.seed, self.place, self.label = seed, place, label
        self.accelerator = make_accelerator(config, place)
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes
        self.batch_size = global_batch(config, len(source), self.world, key=place.batch_key)
        self.batches_per_epoch = len(source) // self.batch_size
        self.steps_per_epoch = self.batches_per_epoch * training.updates_per_batch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step, self.last_step = 0, self.total_steps
        self.stop, self.asked_to_stop = StopFlag(), False
        self.late = reads_late(self.accelerator, config)
        self.unsettled: Update | None = None  # its metrics are not read yet
        self.journal: Journal | None = None
        self.unlogged: Batch | None = None
        self.watching = Watching(None, every=1)

        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        model = training.model.to(self.accelerator.device)
        optimizer = make_optimizer(model, config, layer_decay=training.layer_decay)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.after = Snapshot(model) if self.late else model  # what the average is taken from
        self.synced = config.sync_batchnorm and self.world > 1
        wanted = config.graph == "auto" and training.capturable
        self.graphed = graphed_pass(
            self._pass, model, self.accelerator, wanted=wanted, exchanges=self.synced
        )
        self.by_hand = self.graphed is not None and self.world > 1  # average explicitly
        if self.by_hand:
            self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # no wrapper
            self.optimizer = self.accelerator.prepare_optimizer(optimizer)
            same_start(model)
        else:
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def run(self, *, resume: bool) -> nn.Module:
        if resume and on_main(self.place.checkpoint_file.is_file):
            self._load_checkpoint()
        else:  # never resume the checkpoint of an earlier training
            with contextlib.suppress(OSError):  # reported when the new one is written
                on_main(lambda: self.place.checkpoint_file.unlink(missing_ok=True))
        self.model.train()
        journal = open_journal(
            self.place,
            self.accelerator,
            self.source,
            label=self.label,
            total=self.last_step,
            done=self.step,
        )
        with stop_on_signal() as self.stop, journal as self.journal, heeding_others():
            if self.step < self.last_step:  # else it was stopped right there
                self._run_batches()
            self._save_checkpoint()
        return self._averaged()

    def _averaged(self) -> nn.Module:
        return self.ema.module if self.ema else self.accelerator.unwrap_model(self.model)

    def _look(self) -> bool:
        return self.watching.look(self._averaged(), self.step, self.journal)

    def _run_batches(self) -> None:
        order = self._order(first=self.step // self.training.updates_per_batch)
        begin = time.perf_counter()
        with contextlib.closing(read_ahead(self._load_batch, order)) as batches:
            for images, labels, photos in batches:
                waited = time.perf_counter() - begin
                last = self._train_batch(images, labels, photos)
                self.unlogged = Batch(last, time.perf_counter() - begin, waited)
                if not self.late:
                    self._log()
                if self.asked_to_stop:
                    self._save_checkpoint()
                    raise Interrupted(
                        f"stopped at step {self.step} of {self.total_steps}, progress saved to "
                        f"{self.place.checkpoint_file}",
                        hint=f"resume: {self.place.resume_command}",
                    )
                if self.step >= self.last_step:
                    break
                if self.watching.is_due(self.step):
                    self._settle()
                    if not on_main(self._look):
                        self.watching.watch = None
                if self.step % (self.config.checkpoint_every * self.steps_per_epoch) == 0:
                    self._save_checkpoint()
                begin = time.perf_counter()

    def _order(self, *, first: int) -> Iterator[Tensor]:
        """This process's indices of every batch from `first` to the last, int64 [B_local]."""
        for epoch in range(first // self.batches_per_epoch, self.config.epochs):
            generator = generator_of(self.seed, "epoch order", epoch)
            order = torch.randperm(len(self.source), generator=generator)
            order = order[: self.batches_per_epoch * self.batch_size]
            shares = order.view(self.batches_per_epoch, self.world, -1)
            yield from shares[max(0, first - epoch * self.batches_per_epoch) :, self.rank]

    def _load_batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8 [B, 3, H_canvas, W_canvas], labels, `indices`; runs in the background."""
        images, labels = self.source.batch(indices)
        if self.accelerator.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return images, labels, indices

    def _train_batch(self, images: Tensor, labels: Tensor, photos: Tensor) -> Update:
        """All updates of one batch; returns the last one."""
        device = self.accelerator.device
        images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
        generator = generator_of(self.seed, "step", self.step)
        torch.manual_seed(generator.initial_seed() + self.rank)  # for stochastic depth
        progress = self.step / self.total_steps
        draws = Draws(generator, self.rank, self.world, device, progress, photos)
        with self.accelerator.autocast():
            updates = [
                tuple(channels_last(each) for each in inputs)
                for inputs in self.training.inputs(images, labels, draws)
            ]
        return [self._update(inputs) for inputs in updates][-1]

    def _update(self, inputs: Inputs) -> Update:
        """One optimizer step on one global batch."""
        lr = learning_rate(self.config, self.step, self.steps_per_epoch, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        totals = self._gradients(inputs)
        self._settle()  # finish the previous update, if still open
        limit = self.config.clip_grad or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        figures = self._agree(totals, norm)
        update = Update(self.step, lr, figures)
        if self.late:  # the optimizer reads the flag on the device, and then skips the update
            self.optimizer.optimizer.found_inf = figures.not_finite("loss", NORM)
        else:
            self._check_finite(update)
        self.optimizer.step()
        if self.graphed is None or not self.graphed.holds_gradients:
            # On a CPU, allocating new gradients costs more than clearing the old ones.
            self.optimizer.zero_grad(set_to_none=self.accelerator.device.type == "cuda")
        self.step += 1
        self.unsettled = update
        if isinstance(self.after, Snapshot):
            self.after.take()
        else:
            self._settle()
        return update

    def _gradients(self, inputs: Inputs) -> dict[str, Tensor]:
        """Gradients of one batch, summed over accumulation chunks, and the scalars' means."""
        parts = self.config.accumulate
        totals: dict[str, Tensor] = {}
        for i, chunk in enumerate(chunks(inputs, parts)):
            last = i == parts - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                outputs = self.graphed(chunk, adds=i > 0) if self.graphed else self._pass(chunk)
                for name, value in outputs.items():
                    totals[name] = totals.get(name, 0.0) + value
        if self.by_hand:
            average_gradients(self.model)
        return totals

    def _pass(self, chunk: Inputs) -> dict[str, Tensor]:
        """Forward and backward pass of one chunk: its share of the gradients and scalars."""
        with self._batchnorm():
            outputs = self.model(*chunk)
        parts = self.config.accumulate
        self.accelerator.backward(outputs["loss"] / parts)
        return {name: value.detach().float() / parts for name, value in outputs.items()}

    def _batchnorm(self) -> contextlib.AbstractContextManager[Any]:
        return SyncedBatchNorm() if self.synced else contextlib.nullcontext()

    def _agree(self, totals: dict[str, Tensor], norm: Tensor) -> Figures:
        """Means over processes, and whether any of them must stop, in one exchange."""
        stop = norm.new_full((), float(self.stop.asked))
        means = self.accelerator.reduce(torch.stack([*totals.values(), stop]), "mean")
        return Figures([*totals, STOP, NORM], torch.cat([means, norm[None]]))

    def _settle(self) -> None:
        """Read the last update's metrics: raise if not finite, else update the average."""
        update, self.unsettled = self.unsettled, None
        if update is None:
            return
        self._check_finite(update)
        self.asked_to_stop |= update.figures.read()[STOP] > 0
        if self.ema:
            self.ema.update(self.after, step=update.step + 1)
        self._log()

    def _check_finite(self, update: Update) -> None:
        """Stop before a bad gradient reaches the weights; the last checkpoint stays unchanged."""
        figures = update.figures.read()
        # A gradient that overflowed in fp16 is skipped by the scaler, and training continues.
        watched = ("loss", NORM) if self.accelerator.scaler is None else ("loss",)
        bad = [name for name in watched if not math.isfinite(figures[name])]
        if not bad:
            return
        saved = self.place.checkpoint_file
        kept = (
            f"last good checkpoint: {saved}" if saved.is_file() else "no checkpoint was saved yet"
        )
        raise TrainingError(
            f"{bad[0]} is {figures[bad[0]]} at step {update.step} (learning rate {update.lr:.2e}); "
            f"{kept}",
            hint=f"lower the rate, such as --set {self.place.lr_key}="
            f"{self.config.lr / 3:.1e}, or use --set train.precision=fp32",
        )

    def _log(self) -> None:
        """Log the finished batch, if it is not logged yet."""
        batch, self.unlogged = self.unlogged, None
        if batch is None or self.journal is None:
            return
        figures = batch.last.figures.read()
        self.journal.record(
            step=batch.last.step + 1,
            epoch=batch.last.step // self.steps_per_epoch,
            scalars={k: v for k, v in figures.items() if k not in (STOP, NORM)},
            lr=batch.last.lr,
            photos=self.batch_size,
            seconds=batch.seconds,
            waited=batch.waited,
        )

    def _save_checkpoint(self) -> None:
        self._settle()
        on_main(self._write_checkpoint)  # a failure is raised in all processes

    def _write_checkpoint(self) -> None:
        write_checkpoint(
            self.place.checkpoint_file,
            self._state.saved(self.step),
            resume_command=self.place.resume_command,
        )

    def _load_checkpoint(self) -> None:
        file, device = self.place.checkpoint_file, self.accelerator.device
        self.step = read_checkpoint(file, device=device, load=self._state.restore)
        console.print(f"{self.label}: resuming from step {self.step} of {self.total_steps}")

    @property
    def _state(self) -> TrainingState:
        return TrainingState(
            file=self.place.checkpoint_file,
            model=self.accelerator.unwrap_model(self.model),
            optimizer=self.optimizer,
            average=self.ema.module if self.ema else None,
            scaler=self.accelerator.scaler,
            images=self.source.fingerprint,
        )
