"""One training in several processes, as `torchrun` or `accelerate launch` start them.

Both set each process's rank in the environment variables read here. The process group is joined at
the first exchange. Only the main process writes files and prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from hgkd_edge.errors import RecipeError, TrainingError

__all__ = [
    "count",
    "end",
    "from_all",
    "heeding_others",
    "is_first_elsewhere",
    "is_main",
    "local_count",
    "on_main",
    "on_main_for_long",
    "rank",
]

# While the main process indexes shards or downloads weights the others wait; a process that has
# ended is noticed at once all the same.
PATIENCE = timedelta(hours=2)
BETWEEN_SIGNS = 60.0  # seconds between progress signals of a main process at work
T = TypeVar("T")


def count() -> int:
    """Number of processes in the training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_count() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """This process's rank, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def is_first_elsewhere() -> bool:
    """Whether this is the first process of a machine that the main process is not on."""
    return not is_main() and os.environ.get("LOCAL_RANK") == "0"


def on_main(work: Callable[[], T]) -> T:
    """Run a function on the main process only; all processes get its result or raise its error."""
    return on_main_for_long(lambda _: work())


def on_main_for_long(work: Callable[[Callable[[], None]], T]) -> T:
    """As `on_main`, for work that may take longer than the timeout of two hours.

    Args:
        work: Calls its argument from time to time to show progress; each call extends the timeout
            by two hours.
    """
    if count() == 1:
        return work(lambda: None)
    message: tuple[bool, Any, Exception | None] = (False, None, None)  # done, result, error
    if is_main():
        try:
            message = (True, work(_signs_of_life()), None)
        except Exception as failure:
            message = (True, None, failure)
        _from_main(message)
    else:
        while not message[0]:
            message = _from_main(message)
    _, result, error = message
    if error is not None:
        raise error
    return result


def _signs_of_life() -> Callable[[], None]:
    """Called by the main process while the others wait; usually does nothing."""
    last = time.monotonic()

    def sign() -> None:
        nonlocal last
        if time.monotonic() - last >= BETWEEN_SIGNS:
            _from_main((False, None, None))
            last = time.monotonic()

    return sign


def _from_main(message: T) -> T:
    """The main process's message, on every process."""
    box = [message]
    with heeding_others():
        _group().broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """Every process's value, in the order of processes."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with heeding_others():
        _group().all_gather_object(values, value)
    return values


@contextlib.contextmanager
def heeding_others() -> Iterator[None]:
    """Raise one clear error when another process ends during a common step.

    Raises:
        TrainingError: Another process ended; other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not _is_of_exchange(error):
            raise
        raise TrainingError(
            "another process of this training has ended; the last checkpoint is kept",
            hint="read the output of that process, then resume with --resume",
        ) from error


def end(code: int) -> NoReturn:
    """End this process with an exit status.

    With several processes the interpreter is not shut down first: communication threads that
    outlive it sometimes abort the process, and torchrun reports that as a failure.
    """
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_of_exchange(error: RuntimeError) -> bool:
    """Whether the exchange broke: NCCL and the store have types for that, gloo only a message."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def _group() -> Any:
    """`torch.distributed`, with this process in the group.

    Raises:
        RecipeError: More processes than GPUs on this machine.
    """
    import torch
    import torch.distributed
    from accelerate import PartialState

    if not torch.distributed.is_initialized():
        if torch.cuda.is_available() and local_count() > (gpus := torch.cuda.device_count()):
            raise RecipeError(
                f"{local_count()} processes on this machine, which has {gpus} GPU"
                + ("s" if gpus > 1 else ""),
                hint=f"start {gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU",
            )
        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return torch.distributed
