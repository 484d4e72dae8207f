"""Make `hgkd_edge/data/bundled/clothing10.zip` from the CC0 clothing data set.

    python -m benchmarks.make_bundled CLOTHING10_DIR

CLOTHING10_DIR holds {train,test}/<class>/*.jpg. Keeps every test image and a class-balanced sample
of the training images, 2,000 in all, as 96x96 center crops in WebP.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

from PIL import Image

SIDE, QUALITY, TOTAL = 96, 80, 2000
OUT = Path(__file__).parent.parent / "hgkd_edge" / "data" / "bundled" / "clothing10.zip"


def encode(path: Path) -> bytes:
    """Center crop to a square, resize to SIDE pixels, encode as WebP."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    crop = rgb.crop((left, top, left + side, top + side)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    crop.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def spread(paths: list[Path], count: int) -> list[Path]:
    """`count` of the sorted paths, evenly spaced, so that class proportions are preserved."""
    return [paths[i * len(paths) // count] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    source = parser.parse_args().source
    test = sorted((source / "test").glob("*/*.jpg"))
    train = spread(sorted((source / "train").glob("*/*.jpg")), TOTAL - len(test))
    # Stored, not deflated: WebP does not compress further, and reading remains a plain copy.
    with zipfile.ZipFile(OUT, "w", zipfile.ZIP_STORED) as archive:
        for path in train + test:
            name = path.relative_to(source).with_suffix(".webp").as_posix()
            archive.writestr(zipfile.ZipInfo(name), encode(path))
    print(f"{OUT}: {len(train)} train, {len(test)} test, {OUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
