"""Looks at a model while it is trained: held-out scores in the log, pictures in TensorBoard."""

from __future__ import annotations

import math

from torch import nn

from hgkd_edge.console import warn
from hgkd_edge.engine.interface import Watch
from hgkd_edge.engine.journal import Journal
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import TrainConfig

__all__ = ["Watching", "epochs_between_looks"]

IMAGES_BETWEEN_LOOKS = 30_000  # so that they take a few percent of the time


def epochs_between_looks(config: TrainConfig, *, images: int) -> int:
    """Epochs of `images` images between two looks at a training; 0: none."""
    if config.evaluate_every == "auto":
        return math.ceil(IMAGES_BETWEEN_LOOKS / images)
    return config.evaluate_every


class Watching:
    """When to look, and what becomes of it.

    Args:
        watch: Scores a model; None never does.
        every: Updates between two looks; 0: never.
    """

    def __init__(self, watch: Watch | None, *, every: int) -> None:
        self.watch, self.every = watch, every

    def is_due(self, step: int) -> bool:
        """Whether to look after `step` updates."""
        return self.watch is not None and self.every > 0 and step % self.every == 0

    def look(self, model: nn.Module, step: int, journal: Journal | None) -> bool:
        """Score the model and record it; images that cannot be read end the looks, not the run.

        The model's mode is restored. Its random numbers need not be: each batch seeds its own.

        Returns:
            Whether to look again: the main process looks, and all must stop at the same time.
        """
        assert self.watch is not None, "is_due"
        training = model.training
        try:
            observation = self.watch(model)
        except DataError as error:
            warn(f"no held-out scores from now on: {error}")
            return False
        finally:
            model.train(training)
        if journal is not None and observation.scores:
            journal.observe(step, observation)
        return True
