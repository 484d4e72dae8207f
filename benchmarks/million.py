"""List a folder of a million entries: time, and memory above that of the names.

    python -m benchmarks.million [--entries 1000000] [--folders 1000] [--folder DIR] [--json]

The entries are links to one image, spread over class folders (links need no blocks; listing treats
them as files). Making them takes minutes, which do not count. Exit status 1 above a minute, above
1 GiB, or if an entry is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from hgkd_edge.data.sources import list_photos
from hgkd_edge.recipe_sections import DataConfig

MOST_SECONDS, MOST_MIB = 60, 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1000, help="class folders")
    parser.add_argument("--folder", type=Path, help="where to make them [default: TMPDIR]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        make(Path(root), options.entries, options.folders)
        figures = listed(Path(root, "photos"))
    print(json.dumps(figures) if options.json else figures)
    good = figures["seconds"] <= MOST_SECONDS and figures["memory_mib"] <= MOST_MIB
    return int(not good or figures["listed"] != options.entries)


def listed(photos: Path) -> dict[str, float]:
    """List the folder: number of images and classes, seconds, and MiB."""
    before, began = peak_mib(), time.perf_counter()
    listing = list_photos(DataConfig(path=photos))
    seconds = time.perf_counter() - began
    return {
        "listed": sum(len(photos) for photos in listing.splits.values()),
        "classes": len(listing.classes),
        "seconds": round(seconds, 1),
        "memory_mib": round(peak_mib() - before),
    }


def make(root: Path, entries: int, folders: int) -> None:
    """`photos/CLASS/NUMBER.png`, all of one image."""
    image = root / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    for label in range(folders):
        folder = root / "photos" / f"class-{label:04}"
        folder.mkdir(parents=True)
        for number in range(label, entries, folders):
            os.symlink("../../image.png", folder / f"{number:07}.png")


def peak_mib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
