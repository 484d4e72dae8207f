"""Training that needs more memory than there is: one error that names the batch size to try."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hgkd_edge.errors import TrainingError, is_out_of_memory

__all__ = ["naming_batch_size"]


@contextlib.contextmanager
def naming_batch_size(batch_size: int, key: str) -> Iterator[None]:
    """Report memory that cannot be allocated, on CPU or GPU, as the user's setting.

    Args:
        batch_size: Images per update.
        key: Name of the setting.

    Raises:
        TrainingError: Out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory with {key} = {batch_size}",
            hint=f"start a new run with --set {key}={batch_size // 2}"
            if batch_size > 1
            else "use a smaller data.image_size, or a smaller network",
        ) from error
