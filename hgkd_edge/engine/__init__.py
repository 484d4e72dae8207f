"""The one training loop: schedule, EMA, checkpoints, resume, trackers, progress.

Pre-training, distillation and fine-tuning each provide a `Training`; the loop does not depend on
which one it runs. Resume is exact because a step has no memory: the order of images is a function
of (seed, epoch), every random number a function of (seed, step), and the learning rate a function
of the step. A checkpoint holds the weights, optimizer moments, EMA and the step number.
"""

from hgkd_edge.engine.interface import Draws, Inputs, Observation, Training, Watch, Workplace
from hgkd_edge.engine.loop import train
from hgkd_edge.engine.setup import resolve_precision
from hgkd_edge.engine.watching import epochs_between_looks

__all__ = [
    "Draws",
    "Inputs",
    "Observation",
    "Training",
    "Watch",
    "Workplace",
    "epochs_between_looks",
    "resolve_precision",
    "train",
]
