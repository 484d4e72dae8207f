"""Watch a folder for image files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hgkd_edge.data.find_images import find_images

__all__ = ["PAUSE", "Stamp", "stamp_of", "watch_folder"]

PAUSE = 0.5  # seconds between checks: a file must be the same in two of them


class Stamp(NamedTuple):
    """What changes when a file is written to."""

    size: int
    changed_ns: int


def stamp_of(file: Path) -> Stamp | None:
    """A file's stamp; None if it is gone."""
    try:
        about = file.stat()
    except OSError:
        return None
    return Stamp(about.st_size, about.st_mtime_ns)


def watch_folder(
    folder: Path,
    *,
    but: Path,
    stopped: Callable[[], bool],
    pause: float = PAUSE,
) -> Iterator[Path]:
    """Image files below a folder, existing files first, then new ones, oldest first.

    A file still being written is yielded once it has not changed between two checks. A file that
    changes later is yielded again.

    Args:
        folder: Scanned every `pause` seconds.
        but: A folder to skip.
        stopped: Called before each file; True ends the iteration.
        pause: Seconds between checks.
    """
    before: dict[Path, Stamp] = {}
    given: dict[Path, Stamp] = {}
    while not stopped():
        now = _stamps(folder, but)
        settled = [f for f, stamp in now.items() if before.get(f) == stamp != given.get(f)]
        for file in sorted(settled, key=lambda f: (now[f].changed_ns, f)):
            if stopped():
                return
            given[file] = now[file]
            yield file
        given = {file: stamp for file, stamp in given.items() if file in now}
        before = now
        time.sleep(pause)


def _stamps(folder: Path, but: Path) -> dict[Path, Stamp]:
    """Stamps of all image files below a folder."""
    inside, found = but.resolve(), dict[Path, Stamp]()
    for name in find_images(folder).names:
        file = folder / name
        if inside in file.resolve().parents:
            continue
        if (stamp := stamp_of(file)) is not None and stamp.size:
            found[file] = stamp
    return found
