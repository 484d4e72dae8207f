"""Memory of decoding: a few bytes a pixel, one frame of many, one large image at a time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data import images
from hgkd_edge.data.images import open_image
from tests.data.image_files import PHOTO, png, save_image

pytestmark = pytest.mark.timeout(60)


def peak_megabytes(code: str, *arguments: object, limit: int = 4000) -> float:
    """Peak memory of code in a separate process, without the memory of its imports.

    Args:
        code: Imports, a line `---`, and what is measured; `sys.argv` holds the arguments.
        arguments: For the code.
        limit: Maximum megabytes of address space, so that a failure is harmless.
    """
    imports, measured = textwrap.dedent(code).split("---\n")
    program = f"""
import re, resource, sys
{imports}
# Not `ru_maxrss`: that begins with the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit} * 2**20,) * 2)
before = peak()
{measured}
print(peak() - before)
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


needs_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


@needs_linux
@pytest.mark.parametrize(("bits", "channels", "bytes_each"), [(12, 1, 9), (16, 1, 9), (12, 3, 22)])
def test_a_16_bit_image_takes_a_few_bytes_a_pixel(
    tmp_path: Path, bits: int, channels: int, bytes_each: int
) -> None:
    pixels = np.zeros((3000, 3000, channels), np.uint16)
    pixels[:5] = 2**bits - 1
    file = tmp_path / "a.png"
    file.write_bytes(png(pixels))

    code = """
        from pathlib import Path
        from hgkd_edge.tasks.answers import load_photo
        ---
        load_photo(Path(sys.argv[1]), bits=int(sys.argv[2]))
        """

    with Image.open(file) as image:
        wide = image.mode == "I"  # Pillow 10.1 decodes 16 bits into 32
    assert file.stat().st_size < 100_000
    assert peak_megabytes(code, file, bits) < (bytes_each + 4 * wide) * 3000**2 / 2**20


@needs_linux
def test_of_many_frames_one_is_decoded(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((1000, 1000), i, np.uint8)) for i in range(80)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])

    code = """
        from pathlib import Path
        from hgkd_edge.tasks.answers import load_photo
        ---
        assert load_photo(Path(sys.argv[1])).getpixel((0, 0)) == (0, 0, 0)
        """

    # The TIFF file itself has 80 MB, uncompressed.
    assert peak_megabytes(code, tmp_path / "a.gif") < 30
    assert peak_megabytes(code, tmp_path / "a.tiff") < 110


@needs_linux
def test_a_huge_label_map_takes_a_few_bytes_a_pixel(tmp_path: Path) -> None:
    labels = np.zeros((4000, 4000), np.uint8)
    labels[:2000] = 255
    labels[2000:2100] = 128
    file = save_image(tmp_path / "a.png", labels)

    code = """
        from pathlib import Path
        from hgkd_edge.data.annotations.codes import Tally, settle_coding, in_range
        from hgkd_edge.data.annotations.masks import read_mask
        ---
        tally = Tally.of(in_range(read_mask(Path(sys.argv[1]))))
        coding, _ = settle_coding({"train": tally}, [], "auto", "auto", Path())
        coding.labels(read_mask(Path(sys.argv[1])))
        """

    assert file.stat().st_size < 200_000
    assert peak_megabytes(code, file) < 7 * labels.size / 2**20


@needs_linux
def test_a_tinted_picture_takes_a_few_bytes_a_pixel() -> None:
    code = """
        import numpy as np
        from PIL import Image
        from hgkd_edge.tasks.pictures import draw_segments
        ---
        draw_segments(Image.new("RGB", (4000, 4000)), np.ones((4000, 4000), np.uint8))
        """

    assert peak_megabytes(code) < 20 * 4000**2 / 2**20


@needs_linux
def test_many_outlines_of_a_huge_image_take_the_memory_of_one_map() -> None:
    code = """
        import numpy as np
        from hgkd_edge.data.annotations.outlines import Shape, paint
        polygon = [[0, 0, 4000, 0, 4000, 3000, 0, 3000]]
        runs = {"size": [3000, 4000], "counts": [5, 3000 * 4000 - 5]}
        paint([Shape(1, [[0, 0, 9, 0, 9, 9]], "")], (10, 10))  # loads pycocotools
        ---
        labels, faults = paint([Shape(1, polygon, ""), Shape(2, runs, "")] * 40, (3000, 4000))
        assert not faults and set(np.unique(labels)) == {1, 2}
        """

    assert peak_megabytes(code) < 6 * 12


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (
        save_image(tmp_path / "a.png"),
        save_image(tmp_path / "b.png", PHOTO.repeat(2, axis=0)),
    )
    monkeypatch.setattr(images, "LARGE", PHOTO.shape[0] * PHOTO.shape[1])
    lock, open_now = threading.Lock(), dict.fromkeys((small, large), 0)
    most = dict(open_now)

    def decode(file: Path) -> None:
        with open_image(file), open_image(file):  # 16-bit color is opened twice
            with lock:
                open_now[file] += 1
                most[file] = max(most[file], open_now[file])
            time.sleep(0.02)
            with lock:
                open_now[file] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(decode, [small, large] * 6))

    assert most[large] == 1
    assert most[small] > 1
