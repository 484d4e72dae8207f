from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from hgkd_edge.data.mirror import without_pattern
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import DataError, MissingPackageError
from tests.data.helpers import data_config

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def dataset(photos: Path, tmp_path: Path) -> object:
    """The images as the library itself reads them."""
    return datasets.load_dataset("imagefolder", data_dir=str(photos), cache_dir=str(tmp_path / "c"))


@pytest.mark.parametrize("decode", ["once", "streaming"])
@pytest.mark.parametrize("kind", ["folder of images", "saved to disk", "parquet"])
def test_a_local_dataset_holds_the_same_images_as_the_folder_it_was_made_from(
    photos: Path, tmp_path: Path, dataset: dict[str, object], kind: str, decode: str
) -> None:
    place = tmp_path / "local"
    if kind == "saved to disk":
        dataset.save_to_disk(str(place))
    elif kind == "parquet":
        for split, part in dataset.items():
            part.to_parquet(str(place / f"{split}.parquet"))
    else:
        place = photos

    found = open_splits(data_config(place, source="hf", decode=decode))
    folder = open_splits(data_config(photos))

    assert {name: len(source) for name, source in found.items()} == {"train": 48, "test": 18}
    for split, source in found.items():
        assert source.classes == folder[split].classes
        assert torch.equal(source.labels, folder[split].labels)
        assert torch.equal(source.images[torch.arange(len(source))], folder[split].images)


def test_a_relative_path_is_a_folder_whatever_its_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `datasets` has readers of these names, and asks the hub for what it takes for a name.
    (tmp_path / "imagefolder").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    found = open_splits(data_config(Path("imagefolder"), source="hf"))

    assert {name: len(source) for name, source in found.items()} == {"train": 48, "test": 18}


def test_a_file_is_refused_before_its_name_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    with pytest.raises(DataError, match="is a file") as raised:
        open_splits(data_config(Path("train.parquet"), source="hf"))

    assert raised.value.hint == "give the folder that it is in"


CONFIGS = "configs:\n- config_name: default\n  data_files: {}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", f"---\n{CONFIGS}---\n# Data\n"),
        ("README.md", f"---\na: 1\n---- : 2\n{CONFIGS}---\n"),  # a longer line of dashes is no end
        ("README.md", f"---\n{CONFIGS}---".replace("\n", "\r")),
        (".huggingface.yaml", CONFIGS),
    ],
)
def test_a_folder_cannot_name_an_address_to_load_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / name).write_bytes(text.format("https://example.org/train.parquet").encode())

    with pytest.raises(DataError, match="names data at https://example.org/train.parquet"):
        open_splits(data_config(tmp_path, source="hf"))


def test_addresses_in_a_folder_s_description_are_text(
    tmp_path: Path, dataset: dict[str, object]
) -> None:
    dataset["train"].to_parquet(str(tmp_path / "data" / "train.parquet"))
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nlicense: mit\nconfigs:\n- config_name: default\n"
        "  description: see https://example.org\n  data_files: data/*.parquet\n---\n"
    )

    assert len(open_splits(data_config(tmp_path, source="hf", holdout=0))["train"]) == 48


def test_the_cache_does_not_answer_for_another_folder_or_for_changed_files(
    tmp_path: Path, dataset: dict[str, object]
) -> None:
    def count(place: Path, images: int) -> int:
        dataset["train"].select(range(images)).to_parquet(str(place / "data" / "train.parquet"))
        (place / "README.md").write_text(f"---\n{CONFIGS.format('data/*.parquet')}---\n")
        return len(open_splits(data_config(place, source="hf", holdout=0))["train"])

    assert count(tmp_path / "one" / "photos", 40) == 40
    assert count(tmp_path / "other" / "photos", 30) == 30
    assert count(tmp_path / "one" / "photos", 20) == 20


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a name was looked up")


def test_a_single_split_is_held_out_by_share(tmp_path: Path, dataset: dict[str, object]) -> None:
    dataset["train"].save_to_disk(str(tmp_path / "one"))

    splits = open_splits(data_config(tmp_path / "one", source="hf", holdout=0.2))

    assert set(splits) == {"train", "holdout"}


def test_images_without_a_label_column_are_unlabeled(
    tmp_path: Path, dataset: dict[str, object]
) -> None:
    dataset["train"].remove_columns("label").save_to_disk(str(tmp_path / "bare"))

    source = open_splits(data_config(tmp_path / "bare", source="hf", holdout=0))["train"]

    assert not source.labeled
    assert (source.labels == -1).all()


def test_plain_numbers_are_labels_too(tmp_path: Path, dataset: dict[str, object]) -> None:
    numbers = dataset["train"].cast_column("label", datasets.Value("int32"))
    numbers.save_to_disk(str(tmp_path / "numbers"))

    source = open_splits(data_config(tmp_path / "numbers", source="hf", holdout=0))["train"]

    assert source.classes == ["0", "1", "2"]
    assert source.labels.bincount().tolist() == [16, 16, 16]


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "numbers"),
    [
        ([2, None, 10, 2], "int64", ["2", "10"], [0, -1, 1, 0]),
        ([2.0, None, 10.0, float("nan")], "float64", ["2", "10"], [0, -1, 1, -1]),
        (["cat", None, "dog", "cat "], "string", ["cat", "dog"], [0, -1, 1, 0]),
        ([True, False, None, True], "bool", ["False", "True"], [1, 0, -1, 1]),
        ([None, None, None, None], "string", [], [-1, -1, -1, -1]),
    ],
)
def test_labels_may_be_missing_and_of_any_plain_type(
    tmp_path: Path,
    dataset: dict[str, object],
    labels: list[object],
    kind: str,
    classes: list[str],
    numbers: list[int],
) -> None:
    column = pyarrow.array(labels, type=datasets.Value(kind).pa_type)
    part = dataset["train"].select(range(4)).remove_columns("label").add_column("label", column)
    part.save_to_disk(str(tmp_path / "mixed"))

    source = open_splits(data_config(tmp_path / "mixed", source="hf", holdout=0))["train"]

    assert source.classes == classes
    assert source.labels.tolist() == numbers


def test_a_list_of_labels_per_image_is_no_label(tmp_path: Path, dataset: dict[str, object]) -> None:
    part = dataset["train"].select(range(2)).remove_columns("label")
    part.add_column("label", [[1, 2], []]).save_to_disk(str(tmp_path / "many"))

    assert (
        open_splits(data_config(tmp_path / "many", source="hf", holdout=0))["train"].classes == []
    )


def test_splits_are_found_by_any_spelling_and_others_reported(
    tmp_path: Path, dataset: dict[str, object]
) -> None:
    names = {"Training": "train", "dev": "test", "unlabeled": "test"}
    parts = {name: dataset[split] for name, split in names.items()}
    parts["dev"] = parts["dev"].remove_columns("label")
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "named"))

    splits = open_splits(data_config(tmp_path / "named", source="hf"))

    assert {name: len(source) for name, source in splits.items()} == {"train": 48, "val": 18}
    assert (splits["val"].labels == -1).all(), "this split has no label column"
    assert "splits 'unlabeled' of" in splits["train"].remarks[0]


def test_a_dataset_without_images_is_an_error_that_names_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "text"))

    with pytest.raises(DataError, match="no image column, only text, label"):
        open_splits(data_config(tmp_path / "text", source="hf"))


def test_what_is_no_dataset_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match="empty' cannot be loaded as a dataset"):
        open_splits(data_config(tmp_path / "empty", source="hf"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(MissingPackageError, match=r"hgkd-edge\[hf\]"):
        open_splits(data_config("anything", source="hf"))


# A name that the library reads as a pattern, and a folder next to it that the pattern matches.
PATTERNS = {"a[1]b": "a1b", "q*z": "qqz", "w?v": "wov", "x{1,2}": "x1", "e::f": "e"}


def save_as(kind: str, parts: dict[str, object], photos: Path, to: Path) -> None:
    """Write the images in one of the layouts that the library reads."""
    if kind == "folder of images":
        shutil.copytree(photos, to)
    elif kind == "saved to disk":
        datasets.DatasetDict(parts).save_to_disk(str(to))
    else:
        (to / "data").mkdir(parents=True)
        for split, part in parts.items():
            with (to / "data" / f"{split}-00000-of-00001.parquet").open("wb") as file:
                part.to_parquet(file)
    if kind == "parquet with a card":  # the layout of a cloned Hub repository
        files = [f"  - {{split: {split}, path: data/{split}-*}}" for split in parts]
        card = [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            *files,
            "---",
            "words",
        ]
        (to / "README.md").write_text("\n".join(card))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(name, "folder of images") for name in PATTERNS],
        ("a[1]b", "parquet"),
        ("a[1]b", "parquet with a card"),
        ("q*z", "saved to disk"),
    ],
)
def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(
    tmp_path: Path,
    photos: Path,
    dataset: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / name
    save_as(kind, dataset, photos, folder)
    other = tmp_path / PATTERNS[name]
    save_as(kind, {split: part.select([0, 17]) for split, part in dataset.items()}, photos, other)
    if kind == "folder of images":
        for file in other.glob("*/*/*[02468].webp"):
            file.unlink()

    splits = open_splits(data_config(folder, source="hf", decode="streaming"))

    assert {split: len(source) for split, source in splits.items()} == {"train": 48, "test": 18}
    assert splits["train"].classes == open_splits(data_config(photos))["train"].classes


def test_a_mirror_is_written_once_and_again_when_files_come(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "a[1]"
    shutil.copytree(photos, folder)

    first, again = without_pattern(folder), without_pattern(folder)
    shutil.copy(next(folder.rglob("*.webp")), folder / "train" / "another.webp")
    other = without_pattern(folder)

    assert first == again != other
    assert not (first / "train" / "another.webp").exists()
    assert (other / "train" / "another.webp").read_bytes()
    assert without_pattern(photos) == photos, "an ordinary folder needs none"
    assert len(list((tmp_path / "cache" / "folders").iterdir())) == 2, "nothing half-made is left"


def test_a_cache_that_cannot_hold_a_mirror_is_named(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "a[1]")
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "c[1]"))

    with pytest.raises(DataError, match="HGKD_EDGE_CACHE"):
        open_splits(data_config(tmp_path / "a[1]", source="hf"))
