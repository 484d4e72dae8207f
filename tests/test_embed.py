"""Features of images: equal from PyTorch and ONNX, readable elsewhere, close for similar images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from exporters.onnx_export import export_onnx
from hgkd_edge.cli import app
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.embedding import Embedded, draw_neighbors, embed, nearest
from hgkd_edge.errors import DataError, ExportError, RunError
from hgkd_edge.models.backbone import load_embedding_net
from hgkd_edge.rundir import RunDir
from tests.test_export import new_run


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return new_run(photos, tmp_path_factory.mktemp("embed") / "run")


def test_a_run_and_its_onnx_file_give_the_same_features(
    run: RunDir, photos: Path, tmp_path: Path
) -> None:
    network = load_embedding_net(run.backbone_file).eval()
    spec = InputSpec(network.spec.size, network.spec.mean, network.spec.std, "cover")
    file = tmp_path / "net.onnx"
    about = {f"hgkd_edge.{key}": text for key, text in spec.metadata().items()}
    names = ("embedding",)
    export_onnx(network, file, input_size=(3, 64, 64), output_names=names, metadata=about)

    mine = embed(run.path, [photos / "test"], tmp_path / "a.npz")
    other = embed(file, [photos / "test"], tmp_path / "b.npz")

    assert mine.features.shape == (18, 32)
    assert mine.files == other.files
    np.testing.assert_allclose(mine.features, other.features, atol=1e-4)


def test_neighbors_of_16_bit_images_are_drawn_as_the_network_sees_them(
    run: RunDir, photos: Path, tmp_path: Path
) -> None:
    network = load_embedding_net(run.backbone_file).eval()
    spec = InputSpec(network.spec.size, network.spec.mean, network.spec.std, "cover", bits=12)
    about = {f"hgkd_edge.{key}": text for key, text in spec.metadata().items()}
    model = tmp_path / "net.onnx"
    names = ("embedding",)
    export_onnx(network, model, input_size=(3, 64, 64), output_names=names, metadata=about)
    files = sorted((photos / "test").glob("*/*.webp"))[:2]
    for number, file in enumerate(files):
        with Image.open(file) as photo:
            gray = np.asarray(photo.convert("L")).astype(np.uint16)
        Image.fromarray(gray * 16).save(tmp_path / f"{number}.png")  # 12 bits

    deep = embed(model, [tmp_path / "0.png", tmp_path / "1.png"])
    means = []
    for found, bits in ((deep.files, deep.bits), (files, 0)):
        shown = Embedded(found, deep.features, [], bits)
        with Image.open(draw_neighbors(shown, tmp_path / "drawn.png")) as picture:
            means.append(np.asarray(picture.convert("L")).mean())
    assert means[0] == pytest.approx(means[1], abs=2)


@pytest.mark.parametrize("name", ["features.npz", "features.parquet"])
def test_others_can_read_the_file(run: RunDir, photos: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / name

    found = embed(run.path, [photos / "test"], out)

    if out.suffix == ".npz":
        with np.load(out) as stored:
            features, names = stored["features"], stored["images"].tolist()
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(out)
        features, names = np.stack(table["features"].to_numpy()), table["image"].to_pylist()
    np.testing.assert_array_equal(features, found.features)
    assert names == [str(file) for file in found.files]


def test_a_copy_of_an_image_is_its_nearest_neighbor(
    run: RunDir, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos / "test", tmp_path / "images"))
    first = next(folder.glob("*/*.webp"))
    with Image.open(first) as image:
        image.convert("RGB").save(folder / "copy.png")

    found = embed(run.path, [folder], tmp_path / "features.npz")

    rows = nearest(found.features, 3)
    assert found.files[rows[found.files.index(folder / "copy.png")][0]] == first
    assert all(i not in row for i, row in enumerate(rows))
    picture = draw_neighbors(found, tmp_path / "neighbors.png")
    with Image.open(picture) as drawn:
        assert drawn.size == (6 * 128 + 5 * 4, 8 * 128 + 7 * 4)


def test_neighbors_are_searched_only_for_the_images_that_are_drawn(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photos.glob("*/*/*.webp"))[:20]
    features = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    sorted_sizes = []

    def argsort(values: np.ndarray, **options: Any) -> np.ndarray:
        sorted_sizes.append(values.shape)
        return np.asarray(values.argsort(**options))

    monkeypatch.setattr("hgkd_edge.embedding.np.argsort", argsort)
    draw_neighbors(Embedded(files, features, []), tmp_path / "neighbors.png")

    assert sorted_sizes == [(8, 20)]
    all_rows = nearest(features, 5)
    np.testing.assert_array_equal(nearest(features, 5, [3, 17]), all_rows[[3, 17]])


def test_an_image_that_cannot_be_read_costs_itself(
    run: RunDir, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos / "test", tmp_path / "images"))
    (folder / "broken.jpg").write_bytes(b"no image")

    found = embed(run.path, [folder], tmp_path / "features.npz")

    assert len(found.files) == len(found.features) == 18
    assert [where for where, _ in found.skipped] == [str(folder / "broken.jpg")]


def test_bad_input_is_refused_before_any_work(run: RunDir, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match=r"must end in .npz or .parquet"):
        embed(run.path, [photos], tmp_path / "features.csv")
    with pytest.raises(RunError, match="no such file"):
        embed(tmp_path / "absent.onnx", [photos], tmp_path / "features.npz")
    with pytest.raises(DataError, match="no image files"):
        embed(run.path, [tmp_path / "empty"], tmp_path / "features.npz")
    for place in (Path("/proc/features.npz"), run.recipe_file / "features.npz"):
        with pytest.raises(ExportError, match=f"cannot write '{place}'"):
            embed(run.path, [tmp_path / "empty"], place)
    assert not (tmp_path / "features.npz").exists()


def test_a_folder_in_the_place_of_the_file_is_named_with_neighbors_too(photos: Path) -> None:
    done = CliRunner().invoke(app, ["embed", "run", str(photos), "--out", "/", "--neighbors"])

    assert str(done.exception) == "--out /: must end in .npz or .parquet"
