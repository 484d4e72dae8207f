"""Progress, warnings and messages, all on stderr, since stdout is for results."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.text import Text

from hgkd_edge.processes import is_main

__all__ = [
    "console",
    "live_progress",
    "make_console",
    "note",
    "printable",
    "track_steps",
    "warn",
]

_SECONDS_BETWEEN_LINES = 15.0

# Characters that a terminal interprets instead of printing: control characters and marks that
# reorder a line. Also invisible characters, which make two names look alike. The two joiners are
# kept: Persian and Indian scripts, and emoji, need them.
_UNSEEN = "\N{REPLACEMENT CHARACTER}"
_AS_SHOWN = {
    **dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], _UNSEEN),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2060, 0x2070)], _UNSEEN),
    **dict.fromkeys([0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, 0xFEFF], _UNSEEN),
    **dict.fromkeys([*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)], _UNSEEN),
    **dict.fromkeys([*map(ord, "\n\r\t\v\f\x85\u2028\u2029")], " "),
}


def printable(text: str) -> str:
    """A text as one line without terminal control; its length is kept, so that styles still fit.

    File names, class names, and text from devices and model files may hold anything.
    """
    return text if text.isprintable() else text.translate(_AS_SHOWN)


class _Console(Console):
    """Every text that is printed is `printable`, alone, in a table or in a progress bar."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        if isinstance(renderable, Text):
            shown = renderable.copy()
            shown.plain = printable(shown.plain)
            renderable = shown
        return super().render(renderable, options)


def make_console(**options: Any) -> Console:
    """A console that prints every text literally: brackets are not markup, `:car:` is not an emoji.

    The package creates consoles only here. Colored text is a `rich.text.Text`.
    """
    return _Console(markup=False, emoji=False, highlight=False, **options)


console = make_console(stderr=True, quiet=not is_main())


def warn(message: str) -> None:
    """One warning, in one line."""
    console.print(Text.assemble(("warning:", "yellow"), f" {message}"), soft_wrap=True)


@functools.cache
def note(message: str) -> None:
    """A note that needs no action, in one dim line; a repeated note is printed once."""
    console.print(Text(message, style="dim"), soft_wrap=True)


@contextlib.contextmanager
def track_steps(
    label: str, *, total: int | None, done: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of a long job: a live bar on a terminal, else an occasional line.

    Args:
        label: Name of the job.
        total: Total number of steps; None: unknown.
        done: Steps done before, by a run that is resumed.

    Yields:
        A function of (steps done, figures to show next to the bar).
    """
    if not _shows_bars():
        yield _line_printer(label, total, done)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    left = _time_left(total, done)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=done, figures="", left="")
        yield lambda step, figures: progress.update(
            task, completed=step, figures=figures, left=left(step)
        )


def _shows_bars() -> bool:
    """Whether the output can redraw a line: a terminal, or a notebook with ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


def _time_left(total: int | None, done: int) -> Callable[[int], str]:
    """Steps done -> `0:12:00 left`, from the mean of all steps so far; '' if unknown.

    Rare long steps count, such as evaluation and checkpoints. An estimate from the last steps would
    rise and fall with them.
    """
    begun = time.monotonic()

    def left(step: int) -> str:
        if total is None or not done < step < total:
            return ""
        seconds = (time.monotonic() - begun) / (step - done) * (total - step)
        return f"{timedelta(seconds=round(seconds))} left"

    return left


@contextlib.contextmanager
def live_progress() -> Iterator[Callable[[str, float], None]]:
    """Show named steps of a job: a live bar on a terminal, else each new step once.

    Yields:
        A function of (current step, its completed fraction).
    """
    if not console.is_terminal:
        shown = ""

        def show(what: str, _part: float) -> None:
            nonlocal shown
            if what != shown:
                shown = what
                console.print(what)

        yield show
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda what, part: progress.update(task, description=what, completed=part)


def _line_printer(label: str, total: int | None, done: int) -> Callable[[int, str], None]:
    last, left = time.monotonic(), _time_left(total, done)

    def show(step: int, figures: str) -> None:
        nonlocal last
        if step == total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            line = f"{label} {step}{'' if total is None else f'/{total}'}  {figures}"
            console.print(f"{line}  {left(step)}".rstrip(), soft_wrap=True)

    return show
