"""Hugging Face datasets, by name on the hub or from a local folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hgkd_edge.data.holdout import with_holdout
from hgkd_edge.data.images import read_image_file
from hgkd_edge.data.mirror import without_pattern
from hgkd_edge.data.names import a_few, clean, splits_by_name
from hgkd_edge.data.photos import UNLABELED, Listing, Photos
from hgkd_edge.errors import DataError, MissingPackageError, reason_of
from hgkd_edge.parsing import cut, parse_yaml, read_text
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["hub_photos"]


def hub_photos(config: DataConfig) -> Listing:
    """Images of a dataset: its first image column, and its label column if it has one.

    Raises:
        DataError: The dataset cannot be loaded, or has no split or no column to train on.
        MissingPackageError: The package `datasets` is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingPackageError("data.source 'hf'", extra="hf", package="datasets") from error
    path = str(config.path)
    try:
        loaded = _load(path)
    except DataError:
        raise
    except Exception as error:  # the library has no common error type
        raise DataError(
            f"data.path '{path}' cannot be loaded as a dataset: {reason_of(error)}",
            hint="a name on the hub such as 'uoft-cs/cifar10', a folder of parquet or image "
            "files, or what save_to_disk wrote",
        ) from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    names = splits_by_name(loaded, path)
    splits = {split: loaded[name] for split, name in names.items()}
    if "train" not in splits:
        raise DataError(
            f"data.path '{path}' has no split 'train', only {', '.join(map(str, loaded))}",
            hint="save one of them under the name 'train' with datasets.DatasetDict",
        )
    image, label = _columns(path, splits["train"])
    classes = _classes(list(splits.values()), label) if label else []
    photos = {split: _photos(split, part, image, label, classes) for split, part in splits.items()}
    others = [str(name) for name in loaded if name not in names.values()]
    remarks = [f"warning: splits {a_few(others)} of '{path}' are not used"] if others else []
    return Listing(with_holdout(photos, config.holdout), classes, remarks=remarks)


def _load(path: str) -> Any:
    """Only a name on the hub opens a connection; a relative path might be taken for one."""
    import datasets

    local = Path(path).expanduser().absolute()
    if not local.exists():
        return datasets.load_dataset(path)
    if not local.is_dir():
        raise DataError(f"data.path '{path}' is a file", hint="give the folder that it is in")
    place = without_pattern(local)
    if any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(place))
    _require_local_data(place)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hgkd-edge" / _state_of(place)
    return datasets.load_dataset(str(place), cache_dir=str(cache))


def _state_of(folder: Path) -> str:
    """Changes with the folder's path and files.

    `datasets` knows a folder whose metadata has `configs` by its name and metadata alone: from its
    cache it would return the images of another folder of that name, or those from before a change.
    """
    state = hashlib.sha256(os.fsencode(folder))
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(place, name)
            if file.is_file():  # links to nothing are no data
                about = file.stat()
                state.update(
                    os.fsencode(file) + f"\0{about.st_size} {about.st_mtime_ns}\0".encode()
                )
    return state.hexdigest()[:24]


def _require_local_data(folder: Path) -> None:
    """Raise DataError if a folder's metadata names data at an address, which would be opened."""
    for place in _named_places(folder):
        if "://" in place:
            raise DataError(
                f"the metadata of '{folder}' names data at {cut(place)}",
                hint="download that data into the folder, and name the files there",
            )


def _named_places(folder: Path) -> Iterator[str]:
    """What `data_files` and `data_dir` name, read from the files that `datasets` reads."""
    from huggingface_hub import metadata_load

    metadata: dict[str, Any] = {}
    readme, standalone = folder / "README.md", folder / ".huggingface.yaml"
    if readme.is_file():
        metadata |= metadata_load(readme) or {}
    if standalone.is_file():
        metadata |= parse_yaml(read_text(standalone)) or {}
    for config in metadata.get("configs") or []:
        for key in ("data_files", "data_dir"):
            yield from _texts(config.get(key))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _columns(path: str, part: Any) -> tuple[str, str | None]:
    """Names of the image and label columns."""
    import datasets

    features = part.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise DataError(f"data.path '{path}' has no image column, only {', '.join(features)}")
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if labels:
        return images[0], "label" if "label" in labels else labels[0]
    if isinstance(features.get("label"), datasets.Value):
        return images[0], "label"
    return images[0], None  # a multi-label column does not suit classification


def _classes(parts: list[Any], label: str) -> list[str]:
    """Class names: from the column's type, else the values that occur in any split."""
    import datasets

    if isinstance(parts[0].features[label], datasets.ClassLabel):
        return list(parts[0].features[label].names)
    values = {value for part in parts if label in part.features for value in part.unique(label)}
    numbers = {text: value for value in values if (text := _label_text(value))}
    if all(isinstance(value, (int, float)) for value in numbers.values()):
        return sorted(numbers, key=lambda text: numbers[text])
    return sorted(numbers)


def _label_text(value: Any) -> str:
    """A label as text; '' if missing. Whole numbers give one label, whether 1 or 1.0."""
    if value is None or value != value:  # pandas stores a missing number as NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean(str(value))


def _photos(split: str, part: Any, image: str, label: str | None, classes: list[str]) -> Photos:
    import datasets

    labels = np.full(len(part), UNLABELED, np.int64)
    if label is not None and label in part.features:
        column = part[label][:]
        if isinstance(part.features[label], datasets.ClassLabel):
            labels = np.array([UNLABELED if y is None else y for y in column], np.int64)
        else:
            number = {name: i for i, name in enumerate(classes)}
            labels = np.array([number.get(_label_text(y), UNLABELED) for y in column], np.int64)
    encoded = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Photos(
        names=[f"{split}/{i:08d}" for i in range(len(part))],
        labels=labels,
        read=partial(_read, encoded, image),
        size=_unknown,
        version=str(part._fingerprint),  # the library's own hash of the rows
    )


def _read(rows: Sequence[Any], image: str, i: int) -> bytes:
    cell = rows[i][image]
    return cell["bytes"] if cell["bytes"] is not None else read_image_file(Path(cell["path"]))


def _unknown(i: int) -> int:
    return -1
