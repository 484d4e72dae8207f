"""Pascal VOC: `Annotations/*.xml` beside `JPEGImages/`, splits in `ImageSets/Main/*.txt`."""

from __future__ import annotations

from pathlib import Path
from xml.parsers import expat

from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
    class_file,
    images_by_stem,
    split_lists,
)

__all__ = ["voc_boxes"]

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_boxes(root: Path, holdout: float) -> Listing[list[Box]]:
    """Photos and their objects.

    Classes are the names in `classes.txt`, else those met in the training split. A photo whose
    XML cannot be read is left out: taken without its boxes it would teach that nothing is there.
    """
    images = images_by_stem(root / "JPEGImages")
    lists = split_lists(root / "ImageSets" / "Main")
    splits: dict[str, list[Annotated[list[Box]]]] = {}
    faults: dict[str, list[Fault]] = {}
    everything = {"train": [(file.stem, str(file)) for file in _xml_files(root)]}
    for split, names in (lists or everything).items():
        splits[split], faults[split] = [], []
        for name, where in names:
            try:
                splits[split].append(_photo(root, name, images, faults[split]))
            except FileNotFoundError as error:
                faults[split].append((where, f"'{name}' has {error}"))
            except (OSError, expat.ExpatError) as error:
                file = root / "Annotations" / f"{name}.xml"
                line = f":{error.lineno}" if isinstance(error, expat.ExpatError) else ""
                faults[split].append((f"{file}{line}", f"cannot be read, photo left out: {error}"))
    listing = Listing(splits, [], faults)
    if not lists:
        listing = Listing.of_one(splits["train"], [], holdout)
        listing.faults = faults
    met = {box.name for photo in listing.splits["train"] for box in photo.annotation}
    listing.classes = class_file(root) or sorted(met)
    return listing


def _photo(
    root: Path, name: str, images: dict[str, Path], faults: list[Fault]
) -> Annotated[list[Box]]:
    file = root / "Annotations" / f"{name}.xml"
    if name not in images:
        raise FileNotFoundError("no image in JPEGImages/")
    if not file.is_file():
        raise FileNotFoundError("no XML in Annotations/")
    boxes = []
    for line, fields in _objects(file.read_bytes()):
        where = f"{file}:{line}"
        try:
            corners = tuple(float(fields[f"bndbox/{corner}"]) for corner in CORNERS)
            boxes.append(Box(fields["name"], corners, where))
        except (KeyError, ValueError) as error:
            faults.append((where, f"object without a proper name and box ({error}); left out"))
    return Annotated(images[name].relative_to(root).as_posix(), images[name], boxes)


def _xml_files(root: Path) -> list[Path]:
    return sorted((root / "Annotations").glob("*.xml"))


def _objects(content: bytes) -> list[tuple[int, dict[str, str]]]:
    """Line and fields (`name`, `bndbox/xmin`, ...) of every object: expat knows the line.

    Raises:
        ExpatError: This is not XML.
    """
    parser = expat.ParserCreate()
    found: list[tuple[int, dict[str, str]]] = []
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        text.clear()
        if path[1:] == ["object"]:
            found.append((parser.CurrentLineNumber, {}))

    def end(tag: str) -> None:
        if path[1:2] == ["object"]:
            found[-1][1].setdefault("/".join(path[2:]), "".join(text).strip())
        path.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.Parse(content, True)
    return found
