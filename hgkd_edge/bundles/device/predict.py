"""Answer images with an exported model: numpy, Pillow and onnxruntime, Python 3.8 or later.

    python3 predict.py photo.jpg folder/ --out answers

One JSON object per image goes to stdout, pictures of the answers to `--out`. `model.json` and
`model.onnx` must be next to this file. Processing is the same as in `hgkd-edge predict`; other
programs can import them: `load_image`, `network_input`, `answer`, `draw`.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
ENDINGS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".jfi", ".jfif", ".jif", ".jpe", ".jpeg"),
    *(".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Older Pillow versions have these names in the module itself.
TURNS: Any = getattr(Image, "Transpose", Image)
FILTERS: Any = getattr(Image, "Resampling", Image)
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: TURNS.FLIP_LEFT_RIGHT,
    3: TURNS.ROTATE_180,
    4: TURNS.FLIP_TOP_BOTTOM,
    5: TURNS.TRANSPOSE,
    6: TURNS.ROTATE_270,
    7: TURNS.TRANSVERSE,
    8: TURNS.ROTATE_90,
}
PAD = 114  # gray next to an image that does not fill the input
LONGEST = 8  # maximum size of a resized image before cropping, in multiples of the input

Settings = Dict[str, Any]
Outputs = Dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]


def load_settings(folder: Path = HERE) -> Settings:
    """The settings in `model.json`: task, classes, input, thresholds."""
    return dict(json.loads((folder / "model.json").read_text(encoding="utf-8")))


def open_onnx(path: Path) -> Run:
    """An ONNX file as a function from the network's input to its outputs by name."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reports to Microsoft otherwise
    import onnxruntime

    def start(exact: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        options.intra_op_num_threads = allowed_threads()
        # x86 CPUs without VNNI would add INT8 products in 16 bits, which overflow.
        options.add_session_config_entry("session.x64quantprecision", exact)
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    try:
        session = start("1")
    except Exception:  # without VNNI if layers share weights; any other error is raised again
        session = start("0")
    feed = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, {feed: batch})))


def allowed_threads() -> int:
    """Cores of a process that may not use all (`taskset`), else 0: ONNX Runtime's own count."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


# From an image file to the network's input


def load_image(path: Path, bits: int = 0) -> Image.Image:
    """An image file as 8-bit RGB, upright as viewers show it.

    Args:
        path: The file.
        bits: Bits used in 16-bit files; 0: all 16.
    """
    with Image.open(str(path)) as image:
        if image.format not in FORMATS:  # Pillow would start other programs for some formats
            known = ", ".join(FORMATS)
            raise ValueError("%s files are not read; known: %s" % (image.format, known))
        bits = _packed_bits(image) or bits or 16
        if bits < 16 and _is_deep_color(image):
            raise ValueError("16-bit color is not read by this script; hgkd-edge predict reads it")
        return _to_rgb(_upright(image), bits)


def _upright(image: Any) -> Any:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise almost anything; the pixels may be whole
        orientation = 1
    image.load()
    if orientation not in UPRIGHT:
        return image
    if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) == 1:
        return image  # newer Pillow versions rotate these while decoding
    return image.transpose(UPRIGHT[orientation])


def _to_rgb(image: Any, bits: int) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    highest = 1 if image.mode == "F" else 2**bits - 1
    pixels = np.asarray(image)
    if not (pixels.min() >= 0 and pixels.max() <= highest):
        found = pixels.min(), pixels.max(), highest
        raise ValueError("pixels from %g to %g: can be 0 to %d only" % found)
    scaled = np.round(pixels * (255 / highest)).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _packed_bits(image: Any) -> int:
    """Bits per sample of a TIFF file that packs them; 0 for whole bytes."""
    bits = getattr(image, "tag_v2", {}).get(258, (0,))[0]
    return int(bits) if 8 < bits < 16 else 0


def _is_deep_color(image: Any) -> bool:
    raw = image.tile[0][3] if image.tile else ""
    raw = raw[0] if isinstance(raw, tuple) else raw
    return image.mode.startswith("RGB") and isinstance(raw, str) and ";16" in raw


def network_input(settings: Settings, image: Image.Image) -> np.ndarray:
    """An upright RGB image as the network's input: f32[1, 3, H, W], or a frame u8[1, H, W, 3]."""
    if "preprocessing" in settings["baked"]:
        frame = settings["frame"]
        if frame and [image.height, image.width] != frame:
            raise ValueError("the model takes frames of %d x %d (height x width)" % tuple(frame))
        return np.asarray(image)[None]
    resize = _cover if settings["geometry"] == "cover" else _letterbox
    pixels = np.asarray(resize(image, tuple(settings["size"])), np.float32) / 255
    mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])


def _scaled(image: Image.Image, size: Tuple[int, int]) -> Tuple[int, int]:
    """Each side where the other fits the input exactly, in whole pixels rounded down."""
    rows, columns = size
    return image.height * columns // image.width, image.width * rows // image.height


def _cover(image: Image.Image, size: Tuple[int, int]) -> Image.Image:
    """Resize until the image covers the input, and cut out the center."""
    height, width = size
    tall, wide = (max(s, t) for s, t in zip(_scaled(image, size), size))
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    if tall * wide <= LONGEST * height * width:
        whole = image.resize((wide, tall), FILTERS.BILINEAR)  # Pillow's resize is antialiased
        return whole.crop((left, top, left + width, top + height))
    rows, columns = image.height / tall, image.width / wide
    right = min(image.width, (left + width) * columns)
    bottom = min(image.height, (top + height) * rows)
    box = (left * columns, top * rows, right, bottom)
    return image.resize((width, height), FILTERS.BILINEAR, box=box)


def _letterbox(image: Image.Image, size: Tuple[int, int]) -> Image.Image:
    """Resize until the image fits, at the top left, on gray."""
    height, width = _placed(image, size)
    whole = Image.new("RGB", (size[1], size[0]), (PAD, PAD, PAD))
    whole.paste(image.resize((width, height), FILTERS.BILINEAR), (0, 0))
    return whole


def _placed(image: Image.Image, size: Tuple[int, int]) -> Tuple[int, int]:
    """Height and width that a letterboxed image takes on the input."""
    rows, columns = (max(1, min(s, t)) for s, t in zip(_scaled(image, size), size))
    return rows, columns


# From the network's outputs to an answer


def answer(settings: Settings, run: Run, image: Image.Image, threshold: float) -> Dict[str, Any]:
    """The model's answer for an upright RGB image.

    Args:
        settings: Settings of the model.
        run: The model.
        image: The image.
        threshold: Lowest score of a box or a label.

    Returns:
        `labels`; or `shares` of the area by class and `label_map` u8[H, W]; or `boxes` (x1, y1, x2,
        y2 in pixels of the image).
    """
    outputs = run(network_input(settings, image))
    return ANSWERS[settings["task"]](settings, outputs, image, threshold)


def _classify(settings: Settings, outputs: Outputs, image: Image.Image, _: float) -> Dict[str, Any]:
    if "probabilities" in outputs:
        shares = outputs["probabilities"][0]
    else:
        logits = outputs["logits"][0]
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum()
    best = np.argsort(-shares, kind="stable")[:5]
    labels = [{"name": settings["classes"][i], "probability": float(shares[i])} for i in best]
    return {"labels": labels}


def _tag(settings: Settings, outputs: Outputs, _: Any, threshold: float) -> Dict[str, Any]:
    if "label_probabilities" in outputs:
        shares = outputs["label_probabilities"][0]
    else:
        shares = 0.5 + 0.5 * np.tanh(0.5 * outputs["label_logits"][0])  # the sigmoid
    best = np.argsort(-shares, kind="stable")[: int((shares >= threshold).sum())]
    labels = [{"name": settings["classes"][i], "probability": float(shares[i])} for i in best]
    return {"labels": labels}


def _segment(settings: Settings, outputs: Outputs, image: Image.Image, _: float) -> Dict[str, Any]:
    rows, columns = _placed(image, tuple(settings["size"]))
    if "classes" in outputs:
        placed = outputs["classes"][0][:rows, :columns].astype(np.uint8)
        resized = Image.fromarray(np.ascontiguousarray(placed)).resize(image.size, FILTERS.NEAREST)
        labels = np.asarray(resized)
    else:
        labels = _enlarged(outputs["logits"][0][:, :rows, :columns], image)
    shares = np.bincount(labels.ravel(), minlength=len(settings["classes"])) / labels.size
    return {"shares": dict(zip(settings["classes"], shares.tolist())), "label_map": labels}


def _enlarged(logits: np.ndarray, image: Image.Image) -> np.ndarray:
    """The best class of every pixel of the image; each class's plane is enlarged by itself."""
    best = np.full((image.height, image.width), -np.inf, np.float32)
    labels = np.zeros(best.shape, np.uint8)
    for label, plane in enumerate(logits.astype(np.float32)):
        whole = Image.fromarray(np.ascontiguousarray(plane)).resize(image.size, FILTERS.BILINEAR)
        enlarged = np.asarray(whole)
        better = enlarged > best
        labels[better], best[better] = label, enlarged[better]
    return labels


def _detect(
    settings: Settings, outputs: Outputs, image: Image.Image, threshold: float
) -> Dict[str, Any]:
    if "detections" in outputs:  # rows of image, x1, y1, x2, y2, score, class
        rows = outputs["detections"]
        rows = rows[rows[:, 5] >= threshold]
        rows = rows[np.argsort(-rows[:, 5], kind="stable")]
        boxes, scores, labels = rows[:, 1:5], rows[:, 5], rows[:, 6].astype(int)
    else:
        boxes, labels, scores = _select(
            settings["suppression"], outputs["boxes"][0], outputs["scores"][0], threshold
        )
    height, width = _placed(image, tuple(settings["size"]))
    across, down = width / image.width, height / image.height
    edges = (image.width, image.height, image.width, image.height)
    boxes = np.clip(boxes / np.array((across, down, across, down)), 0, edges).astype(np.float32)
    found = [
        {"name": settings["classes"][label], "score": float(score), "box": box.tolist()}
        for box, label, score in zip(boxes, labels, scores)
    ]
    return {"boxes": found}


def _select(
    rule: Dict[str, Any], boxes: np.ndarray, scores: np.ndarray, threshold: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-maximum suppression, class by class: boxes [m, 4], classes [m], scores [m]."""
    rows, labels = np.nonzero(scores >= threshold)
    order = np.argsort(-scores[rows, labels], kind="stable")[: rule["candidates"]]
    rows, labels = rows[order], labels[order]
    found, alive = boxes[rows], np.ones(len(rows), bool)
    kept: List[int] = []
    for i in range(len(rows)):
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == rule["limit"]:
            break
        rivals = labels == labels[i]
        alive[rivals] &= _overlap(found[i], found[rivals]) <= rule["overlap"]
    return found[kept], labels[kept], scores[rows, labels][kept]


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box [4] and others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - common
    return np.asarray(common / np.maximum(areas, 1e-9))


ANSWERS = {"classify": _classify, "multilabel": _tag, "segment": _segment, "detect": _detect}


def draw(settings: Settings, image: Image.Image, answered: Dict[str, Any]) -> Image.Image:
    """A copy of the image with the answer on it."""
    picture, classes = image.copy(), settings["classes"]
    if "label_map" in answered:
        table = np.array([_color(label) for label in range(256)], np.float32)
        pixels, labels = np.asarray(picture), answered["label_map"]
        tinted = (0.5 * pixels + 0.5 * table[labels]).astype(np.uint8)
        return Image.fromarray(np.where((labels != 0)[..., None], tinted, pixels))
    pen = ImageDraw.Draw(picture)
    for box in reversed(answered.get("boxes", [])):  # the best are drawn on top
        color = _color(classes.index(box["name"]))
        pen.rectangle(box["box"], outline=color, width=max(1, min(picture.size) // 200))
        corner = (box["box"][0], max(0, box["box"][1] - 12))
        _write(pen, corner, "%s %.2f" % (box["name"], box["score"]), color)
    shown = 1 if settings["task"] == "classify" else len(classes)
    for line, label in enumerate(answered.get("labels", [])[:shown]):
        text = "%.0f%% %s" % (100 * label["probability"], label["name"])
        _write(pen, (0, 12 * line), text, "white")
    return picture


def _write(pen: Any, corner: Tuple[float, float], text: str, color: Any) -> None:
    # The font that comes with older versions of Pillow has Latin letters only.
    pen.text(corner, text.encode("latin-1", "replace").decode("latin-1"), fill=color)


def _color(label: int) -> Tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((0.33 + label * 0.618034) % 1, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


# The command


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The named files, and the image files in the named folders except hidden ones."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file == path or (file.suffix.lower() in ENDINGS and not hidden):
                yield file


def threshold_of(settings: Settings, asked: float) -> float:
    """The lowest score of a box or a label: as requested, else that of `hgkd-edge predict`."""
    least = settings.get("threshold") or settings["suppression"]["threshold"]
    if math.isnan(asked):
        return float(least)
    if settings["task"] == "detect" and "postprocessing" in settings["baked"] and asked < least:
        sys.exit("error: --threshold %g: the model keeps boxes of at least %g" % (asked, least))
    return asked


def main() -> int:
    """Predict the images named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--model", type=Path, default=HERE / "model.onnx")
    parser.add_argument("--out", type=Path, help="folder for pictures and label maps")
    lowest = "lowest score of a box or a label"
    parser.add_argument("--threshold", type=float, default=math.nan, help=lowest)
    asked = parser.parse_args()
    settings, run = load_settings(), open_onnx(asked.model)
    threshold = threshold_of(settings, asked.threshold)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, file in enumerate(list(image_files(asked.images))):
        record: Dict[str, Any] = {"photo": str(file)}
        try:
            image = load_image(file, settings["bits"])
            answered = answer(settings, run, image, threshold)
            if asked.out:
                target = asked.out / ("%04d-%s.png" % (number, file.stem))
                draw(settings, image, answered).save(str(target))
                record["picture"] = str(target)
            labels = answered.pop("label_map", None)
            if asked.out and labels is not None:
                record["map"] = str(target.with_name(target.stem + "-map.png"))
                Image.fromarray(labels).save(record["map"])
            record.update(answered)
        except Exception as error:  # a damaged file may raise anything; the others are answered
            record["error"] = str(error) or type(error).__name__
            failed += 1
        print(json.dumps(record), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
