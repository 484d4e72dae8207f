"""Keep what libraries print off stdout, which may carry a caller's JSON."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Send what a library prints to the log (debug), and ignore its warnings."""
    noise = io.StringIO()
    try:
        with contextlib.redirect_stdout(noise), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for line in noise.getvalue().splitlines():
            log.debug("%s: %s", library, line)
