"""List a folder of a million entries: time, and memory above that of the names.

    python -m benchmarks.million [--entries 1000000] [--folder DIR] [--json]

The entries are links to one image, in 1,000 class folders (links need no blocks; listing treats
them as files). Making them takes minutes, which do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from PIL import Image

from hgkd_edge.data.sources import list_photos
from hgkd_edge.recipe_sections import DataConfig

FOLDERS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make them [default: TMPDIR]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        make(Path(root), options.entries)
        before, began = peak_mib(), time.perf_counter()
        listing = list_photos(DataConfig(path=Path(root, "photos")))
        seconds = time.perf_counter() - began
        found = sum(len(photos) for photos in listing.splits.values())
    figures = {
        "entries": options.entries,
        "listed": found,
        "classes": len(listing.classes),
        "seconds": round(seconds, 1),
        "memory_mib": round(peak_mib() - before),
    }
    print(json.dumps(figures) if options.json else figures)


def make(root: Path, entries: int) -> None:
    """`photos/CLASS/NUMBER.png`, all of one image."""
    image = root / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    for label in range(FOLDERS):
        folder = root / "photos" / f"class-{label:04}"
        folder.mkdir(parents=True)
        for number in range(label, entries, FOLDERS):
            os.symlink("../../image.png", folder / f"{number:07}.png")


def peak_mib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
