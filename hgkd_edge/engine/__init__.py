"""The one training loop: schedule, EMA, checkpoints, resume, trackers, progress.

Pre-training, distillation and fine-tuning each bring a `Training`; nothing here knows which. Resume
is exact because a step has no memory: the order of photos is a function of (seed, epoch), every
random number a function of (seed, step), the learning rate a function of the step. A checkpoint is
weights, optimizer moments, EMA and the step number.
"""

from hgkd_edge.engine.loop import train
from hgkd_edge.engine.setup import resolve_precision
from hgkd_edge.engine.training import Draws, Inputs, Training, Workplace

__all__ = ["Draws", "Inputs", "Training", "Workplace", "resolve_precision", "train"]
