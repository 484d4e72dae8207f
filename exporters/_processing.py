"""The graphs that `exporters.bake` puts around a network, in ONNX's text form (opset 17 and up)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ExportError
from .onnx_info import TensorInfo
from .resize import cover, letterbox, resize_matrix, whole

__all__ = [
    "FRAMES",
    "POSTPROCESSING",
    "Preprocessing",
    "preprocessing_constants",
    "preprocessing_graph",
]

FRAMES = "frames"


GEOMETRIES = ("cover", "letterbox")


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded photo to what the network sees.

    Args:
        mean: Per channel (RGB), in [0, 1].
        std: Per channel, in [0, 1].
        canvas: (H, W) that the photo is resized to first (bicubic); when it is not the network's
            own size, the canvas is then resized to that (bilinear).
        geometry: `cover` fills the canvas and cuts the overhang off evenly; `letterbox` puts the
            whole photo into its top left corner, on grey.
        frame: (H, W) of the photos; None leaves it free, where each frame costs the computing of
            the resize matrices as well (TensorRT needs it fixed).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    canvas: tuple[int, int]
    geometry: str = "cover"
    frame: tuple[int, int] | None = None


_PAD = 114  # grey of a letterbox's margin

# Boxes are (x1, y1, x2, y2) in pixels of the network's input; a detection is
# (index of the image in the batch, x1, y1, x2, y2, score, class).
_NMS = """
nms (float[batch,A,4] boxes, float[batch,A,K] scores) => (float[found,7] detections)
<int64 post_most = {100}, float post_overlap = {0.6}, float post_least = {0.4},
 int64[1] post_first = {0}, int64[1] post_second = {1}, int64[1] post_third = {2},
 int64[1] post_end = {3}, int64[1] post_along = {1}>
{
    post_by_class = Transpose <perm = [0, 2, 1]> (scores)
    post_picked = NonMaxSuppression (boxes, post_by_class, post_most, post_overlap, post_least)
    post_image = Slice (post_picked, post_first, post_second, post_along)
    post_label = Slice (post_picked, post_second, post_third, post_along)
    post_anchor = Slice (post_picked, post_third, post_end, post_along)
    post_where = Concat <axis = 1> (post_image, post_anchor)
    post_box = GatherND (boxes, post_where)
    post_flat_score = GatherND (post_by_class, post_picked)
    post_score = Unsqueeze (post_flat_score, post_along)
    post_image_number = Cast <to = 1> (post_image)
    post_class_number = Cast <to = 1> (post_label)
    detections = Concat <axis = 1> (post_image_number, post_box, post_score, post_class_number)
}
"""

POSTPROCESSING = {
    "softmax": """
softmax (float[batch,K] logits) => (float[batch,K] probabilities)
{
    probabilities = Softmax <axis = 1> (logits)
}
""",
    "argmax": """
argmax (float[batch,K,H,W] logits) => (int32[batch,H,W] classes)
{
    post_best = ArgMax <axis = 1, keepdims = 0> (logits)
    classes = Cast <to = 6> (post_best)
}
""",
    "nms": _NMS,
}

# For frames of any size: where each canvas pixel lies in the frame. `exporters.resize` computes the
# same from sizes known beforehand.
_COVER = """
    pre_tall = Div (height, pre_height_target)
    pre_wide = Div (width, pre_width_target)
    pre_scale = Min (pre_tall, pre_wide)
"""
_COVER_AXIS = """
    {axis}_scale = Identity (pre_scale)
    {axis}_span = Mul (pre_scale, pre_{axis}_target)
    {axis}_overhang = Sub ({axis}, {axis}_span)
    {axis}_start = Mul ({axis}_overhang, pre_half)
    {axis}_reached = Identity (pre_one)
"""
_LETTERBOX = """
    pre_tall = Div (pre_height_target, height)
    pre_wide = Div (pre_width_target, width)
    pre_fit = Min (pre_tall, pre_wide)
"""
_LETTERBOX_AXIS = """
    {axis}_fitted = Mul ({axis}, pre_fit)
    {axis}_rounded = Round ({axis}_fitted)
    {axis}_placed = Clip ({axis}_rounded, pre_one, pre_{axis}_target)
    {axis}_scale = Div ({axis}, {axis}_placed)
    {axis}_start = Identity (pre_zero)
    {axis}_inside = Less (pre_{axis}_centres, {axis}_placed)
    {axis}_reached = Cast <to = 1> ({axis}_inside)
"""
# Pillow's bicubic filter (a = -0.5) around that place.
_MATRIX = """
    {axis}_offset = Mul (pre_{axis}_centres, {axis}_scale)
    {axis}_centres = Add ({axis}_offset, {axis}_start)
    {axis}_corners = Range (pre_zero, {axis}, pre_one)
    {axis}_pixels = Add ({axis}_corners, pre_half)
    {axis}_away = Sub ({axis}_pixels, {axis}_centres)
    {axis}_widened = Max ({axis}_scale, pre_one)
    {axis}_scaled = Div ({axis}_away, {axis}_widened)
    {axis}_t = Abs ({axis}_scaled)
    {axis}_t2 = Mul ({axis}_t, {axis}_t)
    {axis}_near0 = Mul ({axis}_t, pre_near1)
    {axis}_near1 = Sub ({axis}_near0, pre_near2)
    {axis}_near2 = Mul ({axis}_near1, {axis}_t2)
    {axis}_near = Add ({axis}_near2, pre_one)
    {axis}_far0 = Sub ({axis}_t, pre_five)
    {axis}_far1 = Mul ({axis}_far0, {axis}_t)
    {axis}_far2 = Add ({axis}_far1, pre_eight)
    {axis}_far3 = Mul ({axis}_far2, {axis}_t)
    {axis}_far4 = Sub ({axis}_far3, pre_four)
    {axis}_far = Mul ({axis}_far4, pre_minus_half)
    {axis}_is_near = Less ({axis}_t, pre_one)
    {axis}_is_far = Less ({axis}_t, pre_two)
    {axis}_outer = Where ({axis}_is_far, {axis}_far, pre_zero)
    {axis}_filter = Where ({axis}_is_near, {axis}_near, {axis}_outer)
    {axis}_sum = ReduceSum ({axis}_filter, pre_last)
    {axis}_some = Max ({axis}_sum, pre_tiny)
    {axis}_full = Div ({axis}_filter, {axis}_some)
    {axis}_matrix = Mul ({axis}_full, {axis}_reached)
"""
_SIZES = """
    pre_shape = Shape (frames)
    pre_int_height = Gather <axis = 0> (pre_shape, pre_axis_1)
    pre_int_width = Gather <axis = 0> (pre_shape, pre_axis_2)
    height = Cast <to = 1> (pre_int_height)
    width = Cast <to = 1> (pre_int_width)
"""
_MARGIN = """
    pre_reached_columns = Transpose <perm = [1, 0]> (width_reached)
    pre_reached = Mul (height_reached, pre_reached_columns)
    pre_missed = Sub (pre_one, pre_reached)
    pre_margin = Mul (pre_missed, pre_pad)
"""
_TURN = """
    width_columns = Transpose <perm = [1, 0]> (width_matrix)
"""

_TO_CANVAS = """
    pre_float = Cast <to = 1> (frames)
    pre_planes = Transpose <perm = [0, 3, 1, 2]> (pre_float)
    pre_narrow = MatMul (pre_planes, width_columns)
    pre_overshooting = MatMul (height_matrix, pre_narrow)
    pre_seen = Clip (pre_overshooting, pre_zero, pre_white)
"""
_FILL = """
    pre_canvas = Add (pre_seen, pre_margin)
"""
_NORMALISE = """
    pre_scaled = Mul ({pixels}, pre_factor)
    {normal} = Add (pre_scaled, pre_shift)
"""
# After normalising, which commutes with it: OpenVINO fails on a per-channel product behind these.
_SHRINK = """
    pre_narrower = MatMul (pre_normal, pre_shrink_columns)
    {image} = MatMul (pre_shrink_rows, pre_narrower)
"""
_COVER_BODY = _TO_CANVAS + _NORMALISE.format(pixels="pre_seen", normal="pre_normal") + _SHRINK
_LETTERBOX_BODY = _TO_CANVAS + _FILL + _NORMALISE.format(pixels="pre_canvas", normal="{image}")


def preprocessing_graph(image: TensorInfo, preprocessing: Preprocessing) -> str:
    """Text of the graph from `frames` u8[B, H, W, 3] to the network's input."""
    boxed = preprocessing.geometry == "letterbox"
    parts = [_LETTERBOX_BODY if boxed else _COVER_BODY]
    if preprocessing.frame is None:
        axis = (_LETTERBOX_AXIS if boxed else _COVER_AXIS) + _MATRIX
        matrices = [axis.replace("{axis}", name) for name in ("height", "width")]
        margin = [_MARGIN] if boxed else []
        parts[:0] = [_SIZES, _LETTERBOX if boxed else _COVER, *matrices, _TURN, *margin]
    body = "".join(parts).replace("{image}", image.name)
    height, width = preprocessing.frame or ("height", "width")
    batch, *rest = image.shape
    sides = ",".join(map(str, rest))
    return (
        f"preprocessing (uint8[{batch},{height},{width},3] {FRAMES}) "
        f"=> (float[{batch},{sides}] {image.name}) {{{body}}}"
    )


def preprocessing_constants(
    image: TensorInfo, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
    """The constants that the graph of `preprocessing_graph` reads.

    Raises:
        ExportError: An unknown geometry, or a letterbox on a canvas of another size.
    """
    canvas = preprocessing.canvas
    size = tuple(int(side) for side in image.shape[2:])
    boxed = preprocessing.geometry == "letterbox"
    if preprocessing.geometry not in GEOMETRIES or (boxed and canvas != size):
        raise ExportError(
            f"geometry '{preprocessing.geometry}' on a canvas {canvas} for a network of {size}",
            hint=f"one of {', '.join(GEOMETRIES)}; a letterbox is as large as the network's input",
        )
    mean, std = (
        np.array(values, np.float32).reshape(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    constants = {
        "pre_zero": np.float32(0),
        "pre_white": np.float32(255),
        "pre_factor": 1 / (255 * std),
        "pre_shift": -mean / std,
    }
    if not boxed:
        rows, columns = (
            resize_matrix(whole(c, s), bicubic=False) for c, s in zip(canvas, size, strict=True)
        )
        constants |= {"pre_shrink_rows": rows, "pre_shrink_columns": columns.T.copy()}
    if preprocessing.frame is None:
        constants |= _free_frame_constants(canvas)
    else:
        constants |= _fixed_frame_constants(preprocessing.frame, canvas, boxed=boxed)
    # numpy turns 0-d results into scalars, which ONNX's helper does not take.
    return {name: np.asarray(value) for name, value in constants.items()}


def _fixed_frame_constants(
    frame: tuple[int, int], canvas: tuple[int, int], *, boxed: bool
) -> dict[str, np.ndarray]:
    axes = letterbox(frame, canvas) if boxed else cover(frame, canvas)
    rows, columns = (resize_matrix(axis, bicubic=True) for axis in axes)
    constants = {"height_matrix": rows, "width_columns": columns.T.copy()}
    if boxed:
        margin = np.full(canvas, _PAD, np.float32)
        margin[: axes[0].placed, : axes[1].placed] = 0
        constants["pre_margin"] = margin
    return constants


def _free_frame_constants(canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    numbers = {
        "one": 1, "two": 2, "four": 4, "five": 5, "eight": 8, "half": 0.5, "minus_half": -0.5,
        "near1": 1.5, "near2": 2.5, "height_target": canvas[0], "width_target": canvas[1],
        "pad": _PAD, "tiny": 1e-9,
    }  # fmt: skip
    constants = {f"pre_{name}": np.asarray(value, np.float32) for name, value in numbers.items()}
    for axis, target in zip(("height", "width"), canvas, strict=True):
        constants[f"pre_{axis}_centres"] = np.arange(target, dtype=np.float32)[:, None] + 0.5
    constants |= {"pre_axis_1": np.asarray(1), "pre_axis_2": np.asarray(2)}
    constants["pre_last"] = np.array([1])
    return constants
