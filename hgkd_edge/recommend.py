"""`recipes new`: a recipe for given images, labels and device, as docs/results.md recommends.

The values are those of a built-in recipe, which is chosen by the device, with what the number of
images, the teacher and hidden objects change. No torch.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hgkd_edge.bench.devices import find_devices
from hgkd_edge.cells import counted
from hgkd_edge.console import printable
from hgkd_edge.data.csv_list import is_table, table_photos
from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.images import open_image
from hgkd_edge.data.spread import evenly
from hgkd_edge.errors import DataError, RecipeError
from hgkd_edge.files import atomic_write, require_writable_folder
from hgkd_edge.recipe import Recipe, find_recipe
from hgkd_edge.recipe_reference import descriptions, recipe_schema
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.yaml_settings import is_section, parse_settings, read_settings, settings_text

__all__ = [
    "DEVICES_WITHOUT_GPU",
    "LABELS",
    "Wish",
    "count_images",
    "is_countable_table",
    "recipe_for",
    "write_recipe",
]

SCHEMA = "recipe.schema.json"
DEVICES_WITHOUT_GPU = ("cpu", "phone")
LABELS = {
    "none": "no labels",
    "one": "about one label per class",
    "few": "about ten labels per class",
    "many": "many labels",
}
TASKS = ("classify", "multilabel", "segment", "detect")
FEW_IMAGES = 10_000  # up to here the teacher's targets are cached
VIEWS = 5_000_000  # images x epochs of the built-in recipes: 100,000 x 50
TEACHER_VIEWS = 40_000_000  # the same of a teacher's own training: 100,000 x 400
MOST_EPOCHS, FEWEST_EPOCHS = 400, 10
SLOW_TFLOPS = 2.0  # FP16, of devices that need a smaller network than ResNet-18
SAMPLE = 32  # images whose size is read
SMALL = 48  # pixels: smaller images need a stem that keeps resolution
# With about ten labels per class (docs/lab-notebook.md).
FEW_LABELS = {
    "classify.label_smoothing": 0,
    "classify.mixup": 0,
    "train.lr": 5e-4,
    "train.batch_size": 32,
    "train.epochs": 100,
}


@dataclass(frozen=True)
class Wish:
    """What a recipe is for.

    Attributes:
        images: `data.path`.
        count: Number of images.
        side: Median of their shorter side in pixels; 0: unknown.
        task: What the student is fine-tuned for: `classify`, `multilabel`, `segment` or `detect`.
        labels: A key of `LABELS`.
        device: An id or family of `hgkd-edge devices`, or one of `DEVICES_WITHOUT_GPU`.
        teacher: `default`: that of the built-in recipe; `own`: trained on the images; or a timm
            name.
        hidden: Whether objects are often partly hidden.
        source: `data.source`.
    """

    images: str
    count: int
    side: int = 0
    task: str = "classify"
    labels: str = "none"
    device: str = "orin-nano-8"
    teacher: str = "default"
    hidden: bool = False
    source: str = "folder"

    @property
    def name(self) -> str:
        """A name for the run: that of the images, as a folder's name may be."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.images).stem).strip("._-")
        return stem or "mine"


def count_images(folder: Path) -> tuple[int, int]:
    """Number of images in a folder or table, and the median of their shorter side in pixels.

    The size is that of a sample; 0 where none of it can be read.

    Raises:
        DataError: It is neither, or holds no images.
    """
    if is_countable_table(folder):
        splits = table_photos(DataConfig(path=folder)).splits.values()
        names = [name for photos in splits for name in photos.names]
        return len(names), _median_side(folder.parent, names)
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder, its images cannot be counted", hint="--count N")
    names = find_images(folder).names
    if not names:
        raise DataError(f"{folder}: there are no images", hint="name a folder of images")
    return len(names), _median_side(folder, names)


def is_countable_table(file: Path) -> bool:
    """Whether a file is a table of images."""
    return file.is_file() and is_table(DataConfig(path=file))


def _median_side(folder: Path, names: Sequence[str]) -> int:
    """Median of the shorter side of a sample of images in pixels; 0 where none can be read."""
    sides = []
    for i in evenly(len(names), SAMPLE):
        try:
            with open_image(folder / names[i]) as image:
                sides.append(min(image.size))
        except Exception:  # a damaged file may raise anything; training skips and lists it
            continue
    return round(statistics.median(sides)) if sides else 0


def recipe_for(wish: Wish) -> str:
    """The text of a recipe, with a comment on every key.

    Raises:
        RecipeError: A value of the wish is unknown, or the recipe would not load.
        DeviceError: The device is unknown.
    """
    for option, value, known in (
        ("--labels", wish.labels, LABELS),
        ("--task", wish.task, TASKS),
    ):
        if value not in known:
            raise RecipeError(f"{option} '{value}' is not known", hint=f"one of {', '.join(known)}")
    base = _base(wish)
    values: dict[str, Any] = read_settings(find_recipe(base))
    reasons: dict[str, str] = {}
    for key, value, why in _changes(wish, values):
        section, _, leaf = key.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        if value is None:
            target.pop(leaf, None)
        else:
            target[leaf], reasons[key] = value, why
    parse_settings(Recipe, values, name="recipes new")
    return "\n".join([*map(printable, _heading(wish, base)), *_lines(values, reasons), ""])


def write_recipe(wish: Wish, file: Path) -> Path:
    """Write a recipe, and the JSON schema that it names next to it; returns the schema's path.

    Raises:
        RecipeError: The recipe exists already, or a value of the wish is unknown.
        ExportError: Its folder cannot be written to.
    """
    if file.exists():
        raise RecipeError(f"{file}: exists already", hint="choose another name: --out FILE")
    text, schema = recipe_for(wish), file.with_name(SCHEMA)
    require_writable_folder(file)
    for path, content in ((schema, json.dumps(recipe_schema(), indent=2) + "\n"), (file, text)):
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return schema


def _base(wish: Wish) -> str:
    """The built-in recipe that the new one starts from."""
    if wish.teacher == "own" and _is_small(wish):
        return "cifar_small"
    if wish.device == "cpu":
        return "efficientnet_lite0_beitv2"
    if wish.device == "phone" or _slowest(wish.device) < SLOW_TFLOPS:
        return "mobilenetv4_dinov3"
    return "resnet18_dinov2_s"


def _slowest(device: str) -> float:
    """FP16 TFLOPS of a device, or of the slowest one of a family."""
    return min(each.fp16_tflops for each in find_devices(device))


def _is_small(wish: Wish) -> bool:
    return 0 < wish.side < SMALL


def _changes(wish: Wish, base: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Key, value (None: remove it) and reason of what differs from the built-in recipe."""
    yield "name", wish.name, "name of the run folder, runs/NAME"
    yield "data.source", wish.source, ""
    yield "data.path", wish.images, counted(wish.count, "image")
    stays_small = _is_small(wish) and base["student"]["name"].startswith("resnet")
    if stays_small:
        yield "data.image_size", 32, f"the images have about {wish.side} px"
        yield "student.stem_stride", 1, "keeps resolution for small images"
    yield from _teacher_changes(wish, base)
    ratio = 0.4 if stays_small else 0.6  # of 4 x 4 or 7 x 7 patches
    if wish.hidden:
        yield "mask.ratio", ratio, "objects are often partly hidden: masked students lose less"
    else:
        yield "mask.ratio", 0, f"whole images: masks did not raise accuracy; {ratio} is H-GKD"
    if wish.count <= FEW_IMAGES:
        yield "mask.per_image", 1, "a new view for every update"
    else:
        yield "mask.per_image", 2, "updates that share one teacher pass"
    yield from _train_changes(wish, base)


def _teacher_changes(wish: Wish, base: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    own = wish.teacher == "own"
    if own and base["teacher"]["weights"] != "pretrain":
        yield "teacher.name", "vit_small_patch16_224", "trained on your images, without labels"
        yield "teacher.weights", "pretrain", "no license, no download; the student starts untrained"
        epochs = _epochs(wish, TEACHER_VIEWS)
        yield "teacher.pretrain", {"epochs": epochs}, f"x {counted(wish.count, 'image')}"
        yield "loss.embedding_weight", None, ""
        yield "student.weights", None, ""
    elif not own and wish.teacher != "default":
        yield "teacher.name", wish.teacher, "see its license before you use the student"
    if wish.count <= FEW_IMAGES:
        yield "teacher.cache", 16, "the teacher runs once, on 16 views of every image"
    if not own:
        yield "student.weights", "hub", "trained on ImageNet: the largest gain measured"
        yield "loss.embedding_weight", 1.0, "the teacher's image embedding too: a large gain"


def _epochs(wish: Wish, views: int) -> int:
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(views / wish.count)))


def _train_changes(wish: Wish, base: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    epochs = _epochs(wish, VIEWS)
    why = f"x {counted(wish.count, 'image')}; the built-in recipe: 50 x 100,000"
    yield "train.epochs", epochs, why
    if wish.count < 20 * base["train"]["batch_size"]:
        yield "train.batch_size", 64, "few images: smaller batches, more updates"
    if epochs < 10 * base["train"]["warmup_epochs"]:
        yield "train.warmup_epochs", epochs / 10, "a tenth of the epochs"


def _heading(wish: Wish, base: str) -> Iterator[str]:
    yield f"# yaml-language-server: $schema={SCHEMA}"
    yield f"# {counted(wish.count, 'image')}, {LABELS[wish.labels]}, device {wish.device}."
    yield f"# Written by 'hgkd-edge recipes new' from the recipe {base}; reasons: docs/results.md."
    yield "#"
    yield f"# license   {_license(wish, base)}"
    yield "# check     hgkd-edge distill RECIPE --check: does the student learn from this teacher?"
    yield f"# after     {_following(wish)}"


def _license(wish: Wish, base: str) -> str:
    if wish.teacher == "own":
        return "no restriction: the teacher is your own"
    if wish.teacher != "default":
        return f"that of {wish.teacher}: distill prints it before it starts"
    found = re.search(r"^# license +(.*)$", settings_text(find_recipe(base)), re.M)
    return found[1] if found else "distill prints it before it starts"


def _following(wish: Wish) -> str:
    """The command after `distill`, as the number of labels recommends."""
    if wish.labels == "none":
        return "hgkd-edge embed RUN IMAGES: features for search, or to choose what to label"
    if wish.labels == "one" and wish.task == "classify":
        return "hgkd-edge evaluate --features: a linear probe is better than fine-tuning"
    settings = FEW_LABELS if wish.labels == "few" and wish.task == "classify" else {}
    sets = "".join(f" --set {key}={value:g}" for key, value in settings.items())
    data = f" --data {shlex.quote(wish.images)}" if wish.source == "folder" else ""
    return f"hgkd-edge finetune --task {wish.task}{data}{sets}"


def _lines(values: dict[str, Any], reasons: dict[str, str]) -> Iterator[str]:
    """The recipe as YAML, in the order of the schema; a comment on every key."""
    for key, field in Recipe.model_fields.items():
        if key not in values:
            continue
        inner = field.annotation
        if not is_section(inner):
            texts = descriptions(Recipe)
            yield _line(key, values[key], reasons.get(key) or _comment(texts[key], values[key]))
            continue
        yield f"{key}:"
        texts = descriptions(inner)
        for name in (name for name in inner.model_fields if name in values[key]):
            value = values[key][name]
            why = reasons.get(f"{key}.{name}") or _comment(texts[name], value)
            yield _line(f"  {name}", value, why)


def _comment(description: str, value: Any) -> str:
    """The part of a key's description that says what a value means, or its first sentence."""
    chosen = re.search(rf"`{re.escape(str(value))}`: ([^.]+)\.", description)
    first = chosen[1] if chosen else re.split(r"(?<=[a-z0-9`])[.;] ", description)[0]
    first = first.rstrip(".")
    return first[0].lower() + first[1:] if first[1:2].islower() else first


def _line(key: str, value: Any, why: str) -> str:
    shown = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    entry = f"{key}: {shown.removesuffix('...' + chr(10)).strip()}"
    return f"{entry:<34}  # {printable(why)}"
