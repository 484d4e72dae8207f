"""What `bake` adds, as ONNX: resizing to any size and scaling before a network, NMS after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .errors import ExportError
from .onnx_info import TensorInfo
from .resize_matrix import cover, letterbox, resize_matrix

__all__ = [
    "FRAMES",
    "POSTPROCESSING",
    "Candidates",
    "Preprocessing",
    "Suppression",
    "postprocessing_constants",
    "postprocessing_graph",
    "preprocessing_constants",
    "preprocessing_graph",
]

FRAMES = "frames"


GEOMETRIES = ("cover", "letterbox")


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to what the network sees, by one bilinear, antialiased resize.

    Args:
        mean: Per channel (RGB), in [0, 1].
        std: Per channel, in [0, 1].
        geometry: `cover` fills the network's input and cuts the overhang off evenly; `letterbox`
            puts the whole image into its top left corner, on gray.
        frame: (H, W) of the images; None leaves it free, where each frame costs the computing of
            the resize matrices as well (TensorRT needs it fixed).
        planes: Take the same pixels as float32 [B, 3, H, W] from 0 to 255, as DeepStream gives
            them, instead of uint8 [B, H, W, 3]. Needs `frame`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    geometry: str = "cover"
    frame: tuple[int, int] | None = None
    planes: bool = False


_PAD = 114  # gray of a letterbox's margin

# Boxes are (x1, y1, x2, y2) in pixels of the network's input; a detection is
# (index of the image in the batch, x1, y1, x2, y2, score, class).
# Boxes of different classes are moved apart, so that one suppression serves all classes and its
# limit is the limit of the image. They move by more than any box reaches.
_CANDIDATES_OF_FREE_SIZE = """    post_shape = Shape <start = 1> (post_pairs)
    post_candidates = Min (post_shape, post_most)
"""
_NMS = """
nms (float[batch,A,4] boxes, float[batch,A,K] scores) => (float[found,7] detections)
<int64[1] post_first = {0}, int64[1] post_second = {1}, int64[1] post_third = {2},
 int64[1] post_end = {3}, int64[2] post_flat = {0, -1}, int64[1] post_last = {-1},
 float post_two = {2}, float post_one = {1}>
{
    post_pairs = Reshape (scores, post_flat)
{most}    post_score, post_pair = TopK <axis = 1> (post_pairs, post_candidates)
    post_anchor = Div (post_pair, post_classes)
    post_before = Mul (post_anchor, post_classes)
    post_class = Sub (post_pair, post_before)
    post_label = Cast <to = 1> (post_class)
    post_index = Unsqueeze (post_anchor, post_last)
    post_rows = Concat <axis = 2> (post_index, post_index, post_index, post_index)
    post_box = GatherElements <axis = 1> (boxes, post_rows)
    post_away = Abs (post_box)
    post_farthest = ReduceMax <keepdims = 0> (post_away)
    post_across = Mul (post_farthest, post_two)
    post_step = Add (post_across, post_one)
    post_moves = Mul (post_label, post_step)
    post_move = Unsqueeze (post_moves, post_last)
    post_apart = Add (post_box, post_move)
    post_single = Unsqueeze (post_score, post_second)
    post_picked = NonMaxSuppression (post_apart, post_single, post_limit, post_overlap, post_least)
    post_image = Slice (post_picked, post_first, post_second, post_second)
    post_candidate = Slice (post_picked, post_third, post_end, post_second)
    post_where = Concat <axis = 1> (post_image, post_candidate)
    post_found_box = GatherND (post_box, post_where)
    post_found_score = GatherND (post_score, post_where)
    post_found_label = GatherND (post_label, post_where)
    post_image_column = Cast <to = 1> (post_image)
    post_score_column = Unsqueeze (post_found_score, post_last)
    post_label_column = Unsqueeze (post_found_label, post_last)
    detections = Concat <axis = 1> (post_image_column, post_found_box, post_score_column,
                                    post_label_column)
}
"""

# The best boxes as shares of the frame, in the order and under the names that the TensorFlow SSD
# parser of DeepStream reads.
_CANDIDATES = """
candidates (float[batch,A,4] boxes, float[batch,A,K] scores)
 => (float[batch,1] num_detections, float[batch,N,4] detection_boxes,
     float[batch,N] detection_scores, float[batch,N] detection_classes)
<int64[1] post_first = {0}, int64[1] post_second = {1}, int64[2] post_flat = {0, -1},
 int64[1] post_last = {-1}, int64[4] post_order = {1, 0, 3, 2}, float post_none = {0},
 float post_whole = {1}>
{
    post_pairs = Reshape (scores, post_flat)
{most}    detection_scores, post_pair = TopK <axis = 1> (post_pairs, post_candidates)
    post_anchor = Div (post_pair, post_classes)
    post_before = Mul (post_anchor, post_classes)
    post_class = Sub (post_pair, post_before)
    detection_classes = Cast <to = 1> (post_class)
    post_index = Unsqueeze (post_anchor, post_last)
    post_rows = Concat <axis = 2> (post_index, post_index, post_index, post_index)
    post_box = GatherElements <axis = 1> (boxes, post_rows)
    post_share = Mul (post_box, post_scale)
    post_clipped = Clip (post_share, post_none, post_whole)
    detection_boxes = Gather <axis = 2> (post_clipped, post_order)
    post_best = Slice (detection_scores, post_first, post_second, post_second)
    post_nothing = Mul (post_best, post_none)
    num_detections = Add (post_nothing, post_count)
}
"""

POSTPROCESSING = {
    "softmax": """
softmax (float[batch,K] logits) => (float[batch,K] probabilities)
{
    probabilities = Softmax <axis = 1> (logits)
}
""",
    "sigmoid": """
sigmoid (float[batch,K] label_logits) => (float[batch,K] label_probabilities)
{
    label_probabilities = Sigmoid (label_logits)
}
""",
    "pixel-softmax": """
pixel_softmax (float[batch,K,H,W] logits) => (float[batch,K,H,W] probabilities)
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
    "candidates": _CANDIDATES,
}


@dataclass(frozen=True)
class Suppression:
    """Non-maximum suppression, class by class, in each image.

    Args:
        threshold: A box whose score is not above this is discarded, as in ONNX's NonMaxSuppression.
        overlap: A box that overlaps a better one of its class by more (as IoU) is dropped.
        candidates: Number of boxes considered: those with the best scores. A box counts once for
            every class.
        limit: Largest number of boxes per image, over all classes.
    """

    threshold: float
    overlap: float
    candidates: int
    limit: int
    graph: ClassVar[str] = "nms"


@dataclass(frozen=True)
class Candidates:
    """The best boxes of each image, for a program that does its own suppression.

    Args:
        candidates: Number of boxes returned: those with the best scores. A box counts once for
            every class.
        placed: Height and width that the frame takes on the network's input.
    """

    candidates: int
    placed: tuple[int, int]
    graph: ClassVar[str] = "candidates"


def postprocessing_graph(name: str, outputs: Mapping[str, TensorInfo]) -> str:
    """Text of the graph behind the network; `outputs` are the network's, by name."""
    scores = outputs.get("scores")
    free = scores is not None and not isinstance(scores.shape[1], int)
    return POSTPROCESSING[name].replace("{most}", _CANDIDATES_OF_FREE_SIZE if free else "")


def postprocessing_constants(
    scores: TensorInfo, rule: Suppression | Candidates
) -> dict[str, np.ndarray]:
    """The constants that the graph of `rule` reads, for `scores` f32[batch, A, K]."""
    anchors, classes = scores.shape[1:]
    assert isinstance(classes, int)
    constants = {"post_classes": np.asarray(classes)}
    if isinstance(rule, Suppression):
        constants |= {
            "post_limit": np.array([rule.limit]),
            "post_overlap": np.array([rule.overlap], np.float32),
            "post_least": np.array([rule.threshold], np.float32),
        }
    if isinstance(anchors, int):  # older TensorRT releases need a fixed size
        count = min(rule.candidates, anchors * classes)
        constants["post_candidates"] = np.array([count])
    else:
        count = rule.candidates
        constants["post_most"] = np.array([count])
    if isinstance(rule, Candidates):
        height, width = rule.placed
        scale = np.array([1 / width, 1 / height, 1 / width, 1 / height], np.float32)
        constants |= {"post_scale": scale, "post_count": np.asarray(count, np.float32)}
    return constants


# For frames of any size: where each pixel of the input lies in the frame, and the triangle filter
# around that place. `exporters.resize_matrix` computes the same from sizes known in advance.
_SCALED = """
    {axis}_across = Mul (pre_int_{axis}, pre_int_{other}_target)
    {axis}_scaled = Div ({axis}_across, pre_int_{other})
"""
_COVER_AXIS = """
    {axis}_int_resized = Max ({axis}_scaled, pre_int_{axis}_target)
    {axis}_resized = Cast <to = 1> ({axis}_int_resized)
    {axis}_scale = Div ({axis}, {axis}_resized)
    {axis}_overhang = Sub ({axis}_resized, pre_{axis}_target)
    {axis}_half = Mul ({axis}_overhang, pre_half)
    {axis}_offset = Round ({axis}_half)
    {axis}_start = Mul ({axis}_offset, {axis}_scale)
    {axis}_reached = Identity (pre_one)
"""
_LETTERBOX_AXIS = """
    {axis}_fitted = Min ({axis}_scaled, pre_int_{axis}_target)
    {axis}_int_placed = Max ({axis}_fitted, pre_int_one)
    {axis}_placed = Cast <to = 1> ({axis}_int_placed)
    {axis}_scale = Div ({axis}, {axis}_placed)
    {axis}_start = Identity (pre_zero)
    {axis}_inside = Less (pre_{axis}_centers, {axis}_placed)
    {axis}_reached = Cast <to = 1> ({axis}_inside)
"""
_MATRIX = """
    {axis}_shifted = Mul (pre_{axis}_centers, {axis}_scale)
    {axis}_centers = Add ({axis}_shifted, {axis}_start)
    {axis}_corners = Range (pre_zero, {axis}, pre_one)
    {axis}_pixels = Add ({axis}_corners, pre_half)
    {axis}_away = Sub ({axis}_pixels, {axis}_centers)
    {axis}_widened = Max ({axis}_scale, pre_one)
    {axis}_relative = Div ({axis}_away, {axis}_widened)
    {axis}_distance = Abs ({axis}_relative)
    {axis}_slope = Sub (pre_one, {axis}_distance)
    {axis}_filter = Relu ({axis}_slope)
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

_FROM_FRAMES = """
    pre_float = Cast <to = 1> (frames)
    pre_planes = Transpose <perm = [0, 3, 1, 2]> (pre_float)
"""
_FROM_PLANES = """
    pre_planes = Identity (frames)
"""
_RESIZE = """
    pre_narrow = MatMul (pre_planes, width_columns)
    pre_resized = MatMul (height_matrix, pre_narrow)
"""
_FILL = """
    pre_filled = Add (pre_resized, pre_margin)
"""
_NORMALIZE = """
    pre_scaled = Mul ({pixels}, pre_factor)
    {image} = Add (pre_scaled, pre_shift)
"""
_COVER_BODY = _RESIZE + _NORMALIZE.replace("{pixels}", "pre_resized")
_LETTERBOX_BODY = _RESIZE + _FILL + _NORMALIZE.replace("{pixels}", "pre_filled")


def preprocessing_graph(image: TensorInfo, preprocessing: Preprocessing) -> str:
    """Text of the graph from `frames` to the network's input."""
    boxed, planes = preprocessing.geometry == "letterbox", preprocessing.planes
    parts = [_FROM_PLANES if planes else _FROM_FRAMES, _LETTERBOX_BODY if boxed else _COVER_BODY]
    if preprocessing.frame is None:
        axis = _SCALED + (_LETTERBOX_AXIS if boxed else _COVER_AXIS) + _MATRIX
        sides = (("height", "width"), ("width", "height"))
        matrices = [axis.replace("{axis}", own).replace("{other}", other) for own, other in sides]
        parts[:0] = [_SIZES, *matrices, _TURN, _MARGIN if boxed else ""]
    body = "".join(parts).replace("{image}", image.name)
    height, width = preprocessing.frame or ("height", "width")
    batch, *rest = image.shape
    shape = ",".join(map(str, rest))
    taken = f"float[{batch},3,{height},{width}]" if planes else f"uint8[{batch},{height},{width},3]"
    return f"preprocessing ({taken} {FRAMES}) => (float[{batch},{shape}] {image.name}) {{{body}}}"


def preprocessing_constants(
    image: TensorInfo, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
    """The constants that the graph of `preprocessing_graph` reads.

    Raises:
        ExportError: An unknown geometry, or planes without a fixed size.
    """
    if preprocessing.planes and preprocessing.frame is None:
        raise ExportError("planes need the size of the frames", hint="give the frame's size")
    if preprocessing.geometry not in GEOMETRIES:
        raise ExportError(
            f"unknown geometry '{preprocessing.geometry}'", hint=f"one of {', '.join(GEOMETRIES)}"
        )
    height, width = image.shape[2:]
    size = int(height), int(width)
    boxed = preprocessing.geometry == "letterbox"
    mean, std = (
        np.array(values, np.float32).reshape(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    constants = {"pre_factor": 1 / (255 * std), "pre_shift": -mean / std}
    if preprocessing.frame is None:
        constants |= _free_frame_constants(size)
    else:
        constants |= _fixed_frame_constants(preprocessing.frame, size, boxed=boxed)
    # numpy turns 0-d results into scalars, which ONNX's helper does not take.
    return {name: np.asarray(value) for name, value in constants.items()}


def _fixed_frame_constants(
    frame: tuple[int, int], size: tuple[int, int], *, boxed: bool
) -> dict[str, np.ndarray]:
    rows, columns = letterbox(frame, size) if boxed else cover(frame, size)
    constants = {
        "height_matrix": resize_matrix(rows),
        "width_columns": resize_matrix(columns).T.copy(),
    }
    if boxed:
        margin = np.full(size, _PAD, np.float32)
        margin[: rows.placed, : columns.placed] = 0
        constants["pre_margin"] = margin
    return constants


def _free_frame_constants(size: tuple[int, int]) -> dict[str, np.ndarray]:
    numbers = {"zero": 0, "one": 1, "half": 0.5, "pad": _PAD, "tiny": 1e-9}
    constants = {f"pre_{name}": np.asarray(value, np.float32) for name, value in numbers.items()}
    for axis, target in zip(("height", "width"), size, strict=True):
        constants[f"pre_{axis}_target"] = np.asarray(target, np.float32)
        constants[f"pre_int_{axis}_target"] = np.asarray(target)
        constants[f"pre_{axis}_centers"] = np.arange(target, dtype=np.float32)[:, None] + 0.5
    constants |= {"pre_axis_1": np.asarray(1), "pre_axis_2": np.asarray(2)}
    constants |= {"pre_int_one": np.asarray(1), "pre_last": np.array([1])}
    return constants
