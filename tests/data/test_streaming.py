from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hgkd_edge.data.decode import memory_bytes, read_ahead
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distillation.distill import distill
from hgkd_edge.errors import DataError
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from tests.data.annotated import BCCD, NUCLEI, boxes, masks
from tests.data.helpers import data_config, spoil
from tests.data.image_files import damaged_exif


def opened(path: Path, decode: str) -> ImageSource:
    return open_splits(data_config(path, decode=decode))["train"]


def test_streamed_batches_are_the_kept_ones(photos: Path) -> None:
    kept, streamed = opened(photos, "once"), opened(photos, "streaming")

    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    for indices in order.split(7):
        for one, other in zip(kept.batch(indices), streamed.batch(indices), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(torch.cat([images for images, _ in streamed.batches(10)]), kept.images)
    assert (streamed.streamed, kept.streamed) == (True, False)


def test_a_subset_of_streamed_images_is_the_subset_of_kept_ones(photos: Path) -> None:
    indices, everything = torch.tensor([5, 40, 3]), torch.arange(3)

    kept = opened(photos, "once").subset(indices)
    streamed = opened(photos, "streaming").subset(indices)

    assert streamed.names == kept.names
    assert all(map(torch.equal, streamed.batch(everything), kept.batch(everything)))


def test_in_the_place_of_an_unreadable_image_stands_the_next_with_its_label(
    photos: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    last_of_first_class = sorted((tree / "train").glob("*/*.webp"))[15]
    spoil(last_of_first_class)
    kept, indices = opened(photos, "once"), torch.tensor([15, 2])

    epochs = [opened(tree, "streaming") for _ in range(2)]
    batches = [source.batch(indices) for source in epochs for _ in range(2)]

    for images, labels in batches:
        assert torch.equal(images, kept.images[[16, 2]])
        assert labels.tolist() == [1, 0]
    assert [name for name, _ in epochs[0].skipped] == [
        last_of_first_class.relative_to(tree).as_posix()
    ]


def test_a_run_survives_unreadable_images_and_lists_them_in_its_manifest(
    photos: Path, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    broken = sorted((tree / "train").glob("*/*.webp"))[3:30:13]
    for file in broken:
        spoil(file)
    odd = sorted((tree / "train").glob("*/*.webp"))[5]
    odd.write_bytes(damaged_exif(Image.open(odd).convert("RGB"), 3, where="orientation"))
    tiny_recipe["data"] |= {"path": str(tree), "decode": "streaming"}
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")

    distill(recipe, run)

    listed = run.manifest().data["train"]
    assert listed.photos == 48
    assert [name for name, _ in listed.skipped] == [
        file.relative_to(tree).as_posix() for file in broken
    ]
    assert [name for name, _ in listed.noted] == [odd.relative_to(tree).as_posix()]


def test_images_that_are_all_unreadable_end_in_an_error_not_in_a_search(
    photos: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    source = opened(tree, "streaming")
    shutil.rmtree(tree)  # the disk disappears during training

    with pytest.raises(DataError, match="48 images in a row cannot be read.*No such file"):
        source.batch(torch.tensor([0, 1]))


def test_nothing_is_decoded_before_it_is_asked_for(photos: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    files = sorted((tree / "train").glob("*/*.webp"))
    for file in files[1:]:
        spoil(file)

    source = opened(tree, "streaming")

    assert len(source) == 48
    assert source.skipped == []


def test_the_fingerprint_of_streamed_images_follows_names_labels_and_sizes(
    photos: Path, tmp_path: Path
) -> None:
    prints = {opened(photos, "streaming").fingerprint}
    for change in ("size", "name", "label"):
        tree = tmp_path / change
        shutil.copytree(photos, tree)
        file = sorted((tree / "train").glob("*/*.webp"))[0]
        if change == "size":
            spoil(sorted((tree / "train").glob("*/*.webp"))[1])
        elif change == "name":
            file.rename(file.with_name("another.webp"))
        else:
            (tree / "train" / "0").mkdir()
            (tree / "train" / "0" / "photo.webp").write_bytes(file.read_bytes())
        prints.add(opened(tree, "streaming").fingerprint)

    assert len(prints) == 4
    assert opened(photos, "streaming").fingerprint in prints


def test_what_would_crowd_out_memory_is_streamed_by_itself(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not open_splits(data_config(photos))["train"].streamed
    assert memory_bytes() > 2**28

    monkeypatch.setattr("hgkd_edge.data.sources.memory_bytes", lambda: 4 * 66 * 3 * 37 * 37 - 1)

    assert all(source.streamed for source in open_splits(data_config(photos)).values())


def test_batches_come_in_order_and_are_read_before_they_are_asked_for() -> None:
    started = [threading.Event() for _ in range(6)]

    def load(index: torch.Tensor) -> int:
        started[int(index)].set()
        return int(index)

    batches = read_ahead(load, torch.arange(6), ahead=2)

    assert next(batches) == 0
    assert all(event.wait(5) for event in started[:3])  # one in use, two being decoded
    assert not started[4].is_set()
    assert list(batches) == [1, 2, 3, 4, 5]


def test_a_fault_in_the_background_comes_to_the_one_who_waits() -> None:
    def load(index: torch.Tensor) -> int:
        if index == 2:
            raise DataError("image 2")
        return int(index)

    batches = read_ahead(load, torch.arange(5))

    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(DataError, match="image 2"):
        next(batches)


ANNOTATED: dict[str, Callable[[str], dict[str, ImageSource]]] = {
    "boxes": lambda decode: boxes(BCCD, decode=decode),
    "label maps": lambda decode: masks(NUCLEI, binary=True, decode=decode),
}


@pytest.mark.parametrize("kind", ANNOTATED)
def test_streamed_annotations_are_the_kept_ones(kind: str) -> None:
    kept, streamed = (ANNOTATED[kind](decode) for decode in ("once", "streaming"))

    for split, source in streamed.items():
        assert source.streamed
        assert not kept[split].streamed
        assert source.names == kept[split].names
        assert source.fingerprint == kept[split].fingerprint
        assert source.skipped == kept[split].skipped
        assert source.ignored == kept[split].ignored
        everything = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
        half = source.subset(everything[::2]), kept[split].subset(everything[::2])
        for one, other in ((source, kept[split]), half):
            for batch, same in zip(one.batches(3), other.batches(3), strict=True):
                assert all(map(torch.equal, batch, same))


@pytest.mark.parametrize("kind", ["boxes", "label maps"])
def test_in_the_place_of_an_undecodable_image_stands_the_next_with_its_annotation(
    kind: str, tmp_path: Path
) -> None:
    sample, open_ = (BCCD, boxes) if kind == "boxes" else (NUCLEI, masks)
    shutil.copytree(sample, tmp_path / "data")
    more: dict[str, Any] = {} if kind == "boxes" else {"binary": True}
    kept = open_(tmp_path / "data", **more)["train"]
    file = next((tmp_path / "data").rglob(kept.names[1].rsplit("/", 1)[-1] + "*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])  # its header remains

    source = open_(tmp_path / "data", decode="streaming", **more)["train"]
    images, labels = source.batch(torch.tensor([1, 0]))

    wanted = kept.batch(torch.tensor([2, 0]))
    assert torch.equal(images, wanted[0])
    assert torch.equal(labels, wanted[1])
    assert [Path(name).name for name, _ in source.skipped[-1:]] == [file.name]
    assert len(open_(tmp_path / "data", **more)["train"]) == len(kept) - 1


def test_a_label_map_that_vanishes_ends_training_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(NUCLEI, tmp_path / "data")
    source = masks(tmp_path / "data", binary=True, decode="streaming")["train"]
    for file in (tmp_path / "data" / "instances").iterdir():
        file.unlink()

    with pytest.raises(DataError, match="label map was readable and no longer is: .*No such file"):
        source.batch(torch.tensor([0]))
