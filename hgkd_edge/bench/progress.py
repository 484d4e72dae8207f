"""A progress line on standard error during measurements; on a pipe, one line per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hgkd_edge.console import make_console

__all__ = ["live_progress"]


@contextmanager
def live_progress() -> Iterator[Callable[[str, float], None]]:
    """Yield a function for `run_bench(progress=...)`; on a pipe it prints each new step once."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        reported: list[str] = []

        def tell_plainly(what: str, _part: float) -> None:
            if what not in reported[-1:]:
                reported.append(what)
                console.print(what)

        yield tell_plainly
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def tell(what: str, part: float) -> None:
            progress.update(task, description=what, completed=part)

        yield tell
