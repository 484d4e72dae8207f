"""Pascal VOC: `Annotations/*.xml` next to `JPEGImages/`, splits in `ImageSets/Main/*.txt`."""

from __future__ import annotations

from pathlib import Path
from xml.parsers import expat

from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
    class_file,
    files_by_stem,
    images_by_stem,
    name_in,
    only_one,
    split_lists,
    stated_size,
    unread_images,
)
from hgkd_edge.data.names import clean, name_classes
from hgkd_edge.parsing import MAX_DEPTH, MAX_LABEL_BYTES, cut, read_file

__all__ = ["voc_boxes"]

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_boxes(root: Path, holdout: float) -> Listing[list[Box]]:
    """Photos and their objects.

    Classes are the names in `classes.txt`, else those met in the training split. A photo whose
    XML cannot be read is skipped: taken without its boxes it would teach that nothing is there.
    Objects marked `<difficult>1</difficult>` are objects like all others, in training and in
    scores, as torchvision's VOCDetection gives them; VOC's own scores pass over them.
    """
    images, xmls = images_by_stem(root / "JPEGImages"), files_by_stem(root / "Annotations", ".xml")
    lists = split_lists(root / "ImageSets" / "Main", images)
    splits: dict[str, list[Annotated[list[Box]]]] = {}
    faults: dict[str, list[Fault]] = {}
    everything = {"train": [(name, str(root / "Annotations" / name)) for name in xmls]}
    for split, names in (lists or everything).items():
        splits[split], faults[split] = [], []
        for name, where in names:
            try:
                photo = only_one(name, images.find(name), "JPEGImages")
                xml = only_one(name, xmls.find(name), "Annotations")
            except FileNotFoundError as error:
                faults[split].append((where, f"{error}; skipped"))
                continue
            try:
                splits[split].append(_photo(root, photo, xml, faults[split]))
            except (OSError, ValueError, expat.ExpatError) as error:
                line = f":{error.lineno}" if isinstance(error, expat.ExpatError) else ""
                faults[split].append((f"{xml}{line}", f"cannot be read, photo skipped: {error}"))
    listing = Listing(splits, [], faults).hold_out(holdout)
    listing.faults.setdefault("train", [])[:0] = unread_images(root / "JPEGImages")
    met = {box.name for photo in listing.splits.get("train", ()) for box in photo.annotation}
    classes = name_classes(met)
    listing.classes, listing.remarks = class_file(root) or classes.names, classes.remarks
    return listing


def _photo(root: Path, file: Path, xml: Path, faults: list[Fault]) -> Annotated[list[Box]]:
    boxes = []
    size, objects = _parse(read_file(xml, MAX_LABEL_BYTES))
    for line, fields in objects:
        where = f"{xml}:{line}"
        try:
            corners = tuple(float(fields[f"bndbox/{corner}"]) for corner in CORNERS)
            boxes.append(Box(clean(fields["name"]), corners, where))
        except (KeyError, ValueError) as error:
            faults.append(
                (where, f"object without a proper name and box ({cut(str(error))}); skipped")
            )
    stated = stated_size(size.get("height"), size.get("width"))
    return Annotated(name_in(root, file), file, boxes, stated)


def _parse(content: bytes) -> tuple[dict[str, str], list[tuple[int, dict[str, str]]]]:
    """The photo's size (`width`, `height`), and line and fields of every object.

    Fields are `name`, `bndbox/xmin`, ...; expat knows the line.

    Raises:
        ExpatError: This is not XML.
        ValueError: It is nested too deeply.
    """
    parser = expat.ParserCreate()
    size: dict[str, str] = {}
    found: list[tuple[int, dict[str, str]]] = []
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        text.clear()
        if len(path) > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
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
