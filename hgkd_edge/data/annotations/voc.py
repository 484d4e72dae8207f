"""Pascal VOC XML: in VOC's own folders, or next to the images as labeling tools leave it.

VOC's own folders: `Annotations/*.xml`, `JPEGImages/`, splits in `ImageSets/Main/*.txt`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from xml.parsers import expat

from hgkd_edge.cells import counted
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
from hgkd_edge.data.annotations.pairs import ImagesBelow, files_below, split_of
from hgkd_edge.data.names import clean, name_classes
from hgkd_edge.parsing import MAX_DEPTH, MAX_LABEL_BYTES, cut, read_file

__all__ = ["is_voc", "voc_boxes"]

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LOOKED_AT = 20  # XML files of a folder checked to recognize the format
HEAD = 4096  # bytes read of each

# Split, name for messages, and the function that finds the image and the XML file.
_Pair = tuple[str, str, Callable[[], tuple[Path, Path]]]


def is_voc(root: Path) -> bool:
    """Whether a folder holds XML files that describe images below it."""
    if any((root / "Annotations").glob("*.xml")):
        return True
    return any(map(_describes_an_image, islice(files_below(root, ".xml"), LOOKED_AT)))


def voc_boxes(root: Path, holdout: float) -> Listing[list[Box]]:
    """Images and their objects.

    Classes are the names in `classes.txt`, else those found in the training split. An image with
    unreadable XML is skipped: using it without its boxes would teach that it is empty. Objects
    marked `<difficult>1</difficult>` count like all others in training and scoring, as in
    torchvision's VOCDetection. VOC's own scoring ignores them.
    """
    standard = any((root / "Annotations").glob("*.xml")) and (root / "JPEGImages").is_dir()
    pairs, listing = _standard_pairs(root) if standard else _pairs_anywhere(root)
    for split, where, find in pairs:
        faults = listing.faults.setdefault(split, [])
        photos = listing.splits.setdefault(split, [])
        try:
            photo, xml = find()
        except FileNotFoundError as error:
            faults.append((where, f"{error}; skipped"))
            continue
        try:
            photos.append(_photo(root, photo, xml, faults))
        except (OSError, ValueError, expat.ExpatError) as error:
            line = f":{error.lineno}" if isinstance(error, expat.ExpatError) else ""
            faults.append((f"{xml}{line}", f"cannot be read, image skipped: {error}"))
    listing = listing.hold_out(holdout)
    met = {box.name for photo in listing.splits.get("train", ()) for box in photo.annotation}
    classes = name_classes(met)
    listing.classes = class_file(root) or classes.names
    listing.remarks += classes.remarks
    return listing


def _standard_pairs(root: Path) -> tuple[list[_Pair], Listing[list[Box]]]:
    """VOC's own folders, with its lists of the splits."""
    images, xmls = images_by_stem(root / "JPEGImages"), files_by_stem(root / "Annotations", ".xml")
    lists = split_lists(root / "ImageSets" / "Main", images)
    everything = {"train": [(name, str(root / "Annotations" / name)) for name in xmls]}

    def find(name: str) -> tuple[Path, Path]:
        photo = only_one(name, images.find(name), "JPEGImages")
        return photo, only_one(name, xmls.find(name), "Annotations")

    pairs: list[_Pair] = [
        (split, where, partial(find, name))
        for split, names in (lists or everything).items()
        for name, where in names
    ]
    return pairs, Listing(
        {split: [] for split in lists}, [], {"train": unread_images(root / "JPEGImages")}
    )


def _pairs_anywhere(root: Path) -> tuple[list[_Pair], Listing[list[Box]]]:
    """Images and XML files with equal names, in the same folder or in any two folders.

    Splits are folders named after one, else lists (`train.txt`, ...) in `root` or `ImageSets/Main`.
    """
    below = ImagesBelow(root)
    xmls = list(files_below(root, ".xml"))
    lists = split_lists(root, below.by_stem) or split_lists(
        root / "ImageSets" / "Main", below.by_stem
    )
    listed = {name: split for split, names in lists.items() for name, _ in names}
    pairs: list[_Pair] = []
    images = set()
    for xml in xmls:
        split = split_of(xml, root) or (listed.get(xml.stem, "") if lists else "train")
        if split:
            pairs.append((split, str(xml), partial(_next_to, xml, below)))
            images.add(xml.stem)
    listing: Listing[list[Box]] = Listing({}, [], {"train": list(below.unused)})
    if bare := sum(file.stem not in images for file in below.files):
        listing.remarks.append(f"{counted(bare, 'image')} not used: without an XML file")
    return pairs, listing


def _next_to(xml: Path, below: ImagesBelow) -> tuple[Path, Path]:
    return below.find(xml), xml


def _describes_an_image(xml: Path) -> bool:
    try:
        return b"<annotation" in read_file(xml, MAX_LABEL_BYTES)[:HEAD]
    except (OSError, ValueError):
        return False


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
    """The image's size (`width`, `height`), and the line and fields of every object.

    Fields are `name`, `bndbox/xmin`, ...; the expat parser provides the line.

    Raises:
        ExpatError: The file is not XML.
        ValueError: The XML is nested too deeply.
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
