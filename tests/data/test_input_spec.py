"""One input contract in four implementations: batches of training, numpy, ONNX and the snippet."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from exporters.bake import Preprocessing, bake
from exporters.onnx_export import export_onnx
from exporters.runtimes.ort import OrtSession
from hgkd_edge.data.annotations import open_masks
from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.resize import PAD, Geometry, cover
from hgkd_edge.data.sources import open_splits
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import load_photo

from ..conftest import BUNDLED
from ..damage import bounded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GEOMETRIES: tuple[Geometry, ...] = ("cover", "letterbox")
SIZES = {"square": (64, 64), "wide": (48, 80)}
LEVEL = 1 / 255


def real_photo(height: int, width: int) -> Image.Image:
    with zipfile.ZipFile(BUNDLED) as archive:
        content = archive.read(sorted(archive.namelist())[400])
    return Image.open(io.BytesIO(content)).convert("RGB").resize((width, height))


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every shape and kind that are easy to get wrong."""
    folder = tmp_path_factory.mktemp("odd")
    sides = [(375, 500), (500, 375), (64, 64), (31, 47), (1, 90), (90, 1), (40, 320), (667, 71)]
    for index, (height, width) in enumerate(sides):
        real_photo(height, width).save(folder / f"{index}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    real_photo(120, 200).save(folder / "turned.jpg", exif=turned, quality=95)
    real_photo(99, 140).convert("L").save(folder / "gray.png")
    real_photo(99, 140).convert("P").save(folder / "palette.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_published_snippet_gives_the_very_input_that_predict_uses(
    odd_images: list[Path], geometry: Geometry, size: tuple[int, int]
) -> None:
    spec = InputSpec(size, MEAN, STD, geometry)
    scope: dict[str, Any] = {}
    exec(spec.snippet(), scope)

    for file in odd_images:
        got = scope["preprocess"](file)

        wanted = spec.array(load_photo(file))
        assert got.shape == wanted.shape == (1, 3, *size), file.name
        assert got.dtype == wanted.dtype == np.float32
        assert np.abs(got - wanted).max() < 1.01 * LEVEL / min(STD), file.name
        if max(sides := Image.open(file).size) <= 8 * min(sides):
            np.testing.assert_array_equal(got, wanted, file.name)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("fixed", [False, True], ids=["free frame", "fixed frame"])
def test_the_onnx_graph_gives_the_same_within_one_gray_level(
    odd_images: list[Path], tmp_path: Path, geometry: Geometry, size: tuple[int, int], fixed: bool
) -> None:
    spec = InputSpec(size, MEAN, STD, geometry)
    network, path = tmp_path / "net.onnx", tmp_path / "baked.onnx"
    export_onnx(
        nn.Hardtanh(-1e6, 1e6), network, input_size=(3, *size), output_names=["pixels"]
    )  # returns its input
    session = None

    for file in odd_images[:4] if fixed else odd_images:
        photo = load_photo(file)
        if fixed or session is None:
            frame = (photo.height, photo.width) if fixed else None
            bake(network, path, preprocessing=Preprocessing(MEAN, STD, geometry, frame))
            session = OrtSession(path)
        (got,) = session.infer({"frames": np.asarray(photo)[None]}).values()

        error = np.abs(got - spec.array(photo)) * np.array(STD).reshape(3, 1, 1) / LEVEL
        assert error.max() < 1.01, file.name
        assert error.mean() < 0.4, file.name


def test_held_out_images_are_scored_on_the_pixels_that_predict_sees(photos: Path) -> None:
    spec = InputSpec((64, 64), MEAN, STD, "cover")
    source = open_splits(DataConfig(path=photos, image_size=64))["test"]

    views = normalize(center_view(source.images[:8], size=(64, 64)), MEAN, STD).numpy()

    for name, view in zip(source.names, views, strict=False):
        np.testing.assert_allclose(view, spec.array(load_photo(photos / name))[0], atol=1e-6)


def test_label_maps_lie_on_the_pixels_that_predict_sees() -> None:
    root = Path(__file__).parent.parent / "samples" / "nuclei"
    spec = InputSpec((64, 96), MEAN, STD, "letterbox")
    source = open_masks(DataConfig(path=root, image_size=(64, 96)), binary=True)["val"]

    views = normalize(source.images.float() / 255, MEAN, STD).numpy()

    for name, view in zip(source.names, views, strict=True):
        photo = load_photo(root / name)
        np.testing.assert_allclose(view, spec.array(photo)[0], atol=1e-6)


SIDE = st.integers(1, 600)


@given(SIDE, SIDE, st.sampled_from([32, 64, 224]))
@settings(deadline=None, max_examples=60)
def test_a_covered_square_is_torchvisions_resize_and_center_crop(
    height: int, width: int, side: int
) -> None:
    if max(height, width) > 30 * min(height, width):
        return  # torchvision resizes all of it, which is slow
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    photo = Image.fromarray(pixels)

    ours = np.asarray(cover(photo, (side, side)), int)

    theirs = np.asarray(v2.CenterCrop(side)(v2.Resize(side)(photo)), int)
    assert np.abs(ours - theirs).max() <= (0 if max(height, width) <= 8 * min(height, width) else 1)


def test_a_very_long_image_takes_no_memory_for_what_is_cut_off() -> None:
    for size in ((1, 60_000), (60_000, 1)):
        photo = Image.new("RGB", size, "white")

        with bounded(megabytes=500):  # a full resize would take 9 GB
            assert cover(photo, (224, 224)).size == (224, 224)


STEPS = {
    "orientation": "upright (EXIF)",
    "color": "RGB",
    "interpolation": "bilinear, antialiased",
    "range": [0, 1],
    "mean": list(MEAN),
    "std": list(STD),
    "layout": "NCHW",
    "dtype": "float32",
}


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (InputSpec((48, 80), MEAN, STD, "cover"), {"geometry": "cover"}),
        (
            InputSpec((48, 80), MEAN, STD, "letterbox", bits=12),
            {"geometry": "letterbox", "anchor": "top left", "fill": PAD, "bits": 12},
        ),
    ],
)
def test_metadata_are_what_other_tools_rely_on(spec: InputSpec, steps: dict[str, Any]) -> None:
    found = {key: json.loads(text) for key, text in spec.metadata().items()}

    assert found == {
        "input_size": [3, 48, 80],
        "mean": list(MEAN),
        "std": list(STD),
        "preprocessing": {**STEPS, **steps},
        "preprocessing_python": spec.snippet(),
    }


@pytest.mark.parametrize("bits", [0, 10, 16])
def test_bits_are_read_back(bits: int) -> None:
    spec = InputSpec((48, 80), MEAN, STD, "letterbox", bits)
    stored = {f"hgkd_edge.{key}": text for key, text in spec.metadata().items()}

    assert InputSpec.from_metadata(stored, geometry="cover") == spec


def test_metadata_are_read_back_and_old_files_without_a_geometry_too() -> None:
    spec = InputSpec((48, 80), MEAN, STD, "letterbox")
    stored = {f"hgkd_edge.{key}": text for key, text in spec.metadata().items()}

    assert InputSpec.from_metadata(stored, geometry="cover") == spec
    old = {key: stored[f"hgkd_edge.{key}"] for key in ("input_size", "mean", "std")}
    old = {f"hgkd_edge.{key}": value for key, value in old.items()}
    assert InputSpec.from_metadata(old, geometry="letterbox") == spec


@pytest.mark.parametrize(
    "damage",
    [
        {"input_size": [3, 0, 8]},
        {"input_size": [3, "a", 8]},
        {"input_size": 7},
        {"preprocessing": {"geometry": "stretch"}},
        {"mean": "x"},
        {"mean": [0.5]},
        {"std": [0.2, 0.0, 0.2]},
        {"std": [0.2, float("nan"), 0.2]},
        {"preprocessing": ["geometry"]},
        {"preprocessing": {"bits": 17}},
        {"preprocessing": {"bits": -1}},
        {"preprocessing": {"bits": True}},
        {"input_size": [3, 13_000, 13_000]},
    ],
)
def test_damaged_metadata_are_refused(damage: dict[str, Any]) -> None:
    wrong = {key: json.dumps(value) for key, value in damage.items()}
    entries = InputSpec((48, 80), MEAN, STD, "cover").metadata() | wrong
    stored = {f"hgkd_edge.{key}": text for key, text in entries.items()}

    with pytest.raises((ValueError, TypeError)):
        InputSpec.from_metadata(stored, geometry="cover")
    deep = stored | {"hgkd_edge.preprocessing": "[" * 100_000}
    with pytest.raises(ValueError, match="nested|deep"):
        InputSpec.from_metadata(deep, geometry="cover")


def test_the_largest_input_is_the_stated_number_of_values() -> None:
    entries = InputSpec((1, 1), MEAN, STD, "cover").metadata()

    def of(height: int, width: int) -> InputSpec:
        size = {"input_size": json.dumps([3, height, width])}
        stored = {f"hgkd_edge.{key}": text for key, text in (entries | size).items()}
        return InputSpec.from_metadata(stored, geometry="cover")

    assert of(6688, 6688).size == (6688, 6688)  # as the message says: 2**27 values
    with pytest.raises(ValueError, match="more than 134,217,728 values"):
        of(6689, 6689)
