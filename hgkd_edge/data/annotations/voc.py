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
    stated_size,
)

__all__ = ["voc_boxes"]

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_boxes(root: Path, holdout: float) -> Listing[list[Box]]:
    """Photos and their objects.

    Classes are the names in `classes.txt`, else those met in the training split. A photo whose
    XML cannot be read is left out: taken without its boxes it would teach that nothing is there.
    Objects marked `<difficult>1</difficult>` are objects like all others, in training and in
    scores, as torchvision's VOCDetection gives them; VOC's own scores pass over them.
    """
    images = images_by_stem(root / "JPEGImages")
    lists = split_lists(root / "ImageSets" / "Main", images)
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
    listing = Listing(splits, [], faults).hold_out(holdout)
    met = {box.name for photo in listing.splits.get("train", ()) for box in photo.annotation}
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
    size, objects = _parse(file.read_bytes())
    for line, fields in objects:
        where = f"{file}:{line}"
        try:
            corners = tuple(float(fields[f"bndbox/{corner}"]) for corner in CORNERS)
            boxes.append(Box(fields["name"], corners, where))
        except (KeyError, ValueError) as error:
            faults.append((where, f"object without a proper name and box ({error}); left out"))
    stated = stated_size(size.get("height"), size.get("width"))
    return Annotated(images[name].relative_to(root).as_posix(), images[name], boxes, stated)


def _xml_files(root: Path) -> list[Path]:
    return sorted((root / "Annotations").glob("*.xml"))


def _parse(content: bytes) -> tuple[dict[str, str], list[tuple[int, dict[str, str]]]]:
    """The photo's size (`width`, `height`), and line and fields of every object.

    Fields are `name`, `bndbox/xmin`, ...; expat knows the line.

    Raises:
        ExpatError: This is not XML.
    """
    parser = expat.ParserCreate()
    size: dict[str, str] = {}
    found: list[tuple[int, dict[str, str]]] = []
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        text.clear()
        if path[1:] == ["object"]:
            found.append((parser.CurrentLineNumber, {}))

    def end(tag: str) -> None:
        if path[1:2] in (["object"], ["size"]):
            fields = found[-1][1] if path[1] == "object" else size
            fields.setdefault("/".join(path[2:]), "".join(text).strip())
        path.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.Parse(content, True)
    return size, found
