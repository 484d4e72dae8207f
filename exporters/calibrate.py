"""Run a network on real images to record the range of each of its tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._graph import WEIGHTED, module_of, sort_nodes
from .atomic_files import temporary_folder
from .choices import METHODS
from .errors import ConversionFailed, ExportError, reason_of
from .onnx_info import graph_inputs
from .quiet import quiet

if TYPE_CHECKING:
    import onnx

__all__ = ["Calibration", "calibrate"]

log = logging.getLogger(__name__)

# They sort absolute values into bins that are as wide as the first batch's range allows.
_HISTOGRAMS = ("percentile", "entropy")
_MOST_BINS = 2**24  # of one histogram; float32 cannot tell more apart
# Tensors at these operators' inputs and outputs are recorded: all that any flavor quantizes.
_WATCHED = ["Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Gemm"]
_WATCHED += ["GlobalAveragePool", "MatMul", "MaxPool", "Mul", "ReduceMean", "Relu", "Resize"]


@dataclass(frozen=True)
class Calibration:
    """Ranges of the tensors of one network, as ONNX Runtime's quantizer takes them."""

    ranges: Any  # onnxruntime.quantization.calibrate.TensorsData
    method: str
    images: int

    def largest(self, tensor: str) -> float:
        """The largest magnitude to represent in this tensor."""
        low, high = self.ranges[tensor].range_value
        return float(max(abs(np.asarray(low).item()), abs(np.asarray(high).item())))

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.ranges


def calibrate(
    model: onnx.ModelProto,
    images: np.ndarray,
    *,
    method: str = METHODS[0],
    batch_size: int = 8,
    learned: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Run an fp32 network over images and record ranges.

    Args:
        model: fp32 ONNX model.
        images: f32[N, 3, H, W], real and preprocessed as in use; a few hundred are enough.
        method: `percentile` (99.999 %) and `entropy` clip rare values. `mean` takes the mean over
            images of each image's extremes, so that a few unusual images do not decide the range.
            `minmax` covers everything seen; it replaces a histogram that a tensor does not have.
            Which is best depends on the network.
        batch_size: Images per run of a file with a dynamic batch; `mean` runs one at a time.
        learned: Largest magnitude of layers' inputs, by the module's name, as quantization-aware
            training left them. They become the ranges of these inputs, and the network runs with
            its inputs clipped as in training: what would exceed them decides no other range.
        progress: Called with (images done, images in all).

    Raises:
        ExportError: No images, images of another size, an unknown method, or `learned` names a
            module that is not in the network.
    """
    (feed,) = graph_inputs(model)
    _require_images(images, feed.shape)
    if method not in METHODS:
        raise ExportError(
            f"unknown calibration method '{method}'", hint=f"one of {', '.join(METHODS)}"
        )
    free = 1 if method == "mean" else batch_size
    step = feed.shape[0] if isinstance(feed.shape[0], int) else free
    largest = _of_tensors(model, learned or {})
    run = _clipping(model, largest) if largest else model
    try:
        ranges = _collect(run, feed.name, images, method, step, progress)
    except Exception as error:  # the calibrator raises many exception types
        if method in _HISTOGRAMS and isinstance(error, (ValueError, MemoryError)):
            log.warning(
                "a layer's output hardly varies, so that it has no %s; minmax is used", method
            )
            return calibrate(
                model,
                images,
                method="minmax",
                batch_size=batch_size,
                learned=learned,
                progress=progress,
            )
        raise ConversionFailed(f"calibration failed: {reason_of(error)}") from error
    for tensor, magnitude in largest.items():
        ranges.data[tensor] = _clipped(ranges[tensor], magnitude)
    return Calibration(ranges, method, len(images))


def _of_tensors(model: onnx.ModelProto, learned: Mapping[str, float]) -> dict[str, float]:
    """Largest magnitude by the name of the tensor that enters a layer."""
    largest: dict[str, float] = {}
    missing = set(learned)
    for node in model.graph.node:
        if node.op_type in WEIGHTED and (module := module_of(node.name)) in learned:
            tensor = node.input[0]
            largest[tensor] = max(largest.get(tensor, 0.0), learned[module])
            missing.discard(module)
    if missing:
        raise ExportError(
            f"learned INT8 ranges name layers that are not in the network: "
            f"{', '.join(sorted(missing))}",
            hint="repeat the quantization-aware fine-tuning: hgkd-edge finetune RUN --qat",
        )
    return largest


def _clipping(model: onnx.ModelProto, largest: Mapping[str, float]) -> onnx.ModelProto:
    """A copy whose layers clip these tensors; skip branches and activations see them whole."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    clips = {}
    for tensor, magnitude in largest.items():
        bounds = [f"{tensor}/{side}" for side in ("least", "most", "clipped")]
        for name, bound in zip(bounds, (-magnitude, magnitude), strict=False):
            value = onnx.numpy_helper.from_array(np.float32(bound), name)
            copied.graph.initializer.append(value)
        clips[tensor] = onnx.helper.make_node("Clip", [tensor, *bounds[:2]], bounds[2:])
    for node in copied.graph.node:
        if node.op_type in WEIGHTED and node.input[0] in clips:
            node.input[0] = clips[node.input[0]].output[0]
    copied.graph.node.extend(clips.values())
    sort_nodes(copied.graph)
    return copied


def _collect(
    model: onnx.ModelProto,
    feed: str,
    images: np.ndarray,
    method: str,
    step: int,
    progress: Callable[[int, int], None],
) -> Any:
    """Ranges of all watched tensors; `step` images a run."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    kinds = {
        "percentile": CalibrationMethod.Percentile,
        "mean": CalibrationMethod.MinMax,
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
    }
    with temporary_folder() as folder, quiet("calibrator"):
        source = folder / "model.onnx"
        source.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(
            source,
            _WATCHED,
            augmented_model_path=str(folder / "watched.onnx"),
            calibrate_method=kinds[method],
            extra_options={"moving_average": method == "mean"},
        )
        # Batch by batch: given all images at once, it would keep every activation in memory.
        for start in range(0, len(images), step):
            batch = np.ascontiguousarray(images[start : start + step], dtype=np.float32)
            # A moving average with these constants is the mean of all batches so far.
            calibrator.averaging_constant = step / (start + step)
            calibrator.collect_data(_OneBatch({feed: batch}))
            if start == 0 and method in _HISTOGRAMS:
                _bound_bins(calibrator.collector)
            progress(start + len(batch), len(images))
        return calibrator.compute_data()


def _bound_bins(collector: Any) -> None:
    """Raise ValueError if the first batch's bins have no width, or a later batch needs too many.

    Only later numpy refuses bins without width itself; a later batch may need 10 GB of bins.
    """
    first = {tensor: edges for tensor, (_, edges, *_) in collector.histogram_dict.items()}
    if any(np.any(edges[:-1] >= edges[1:]) for edges in first.values()):
        raise ValueError("a tensor varies too little for its bins")
    collect = collector.collect

    def bounded(values: Mapping[str, Sequence[np.ndarray]]) -> None:
        for tensor, arrays in values.items():
            edges = first[tensor].astype(np.float64)
            largest = max(float(np.abs(array).max(initial=0)) for array in arrays)
            if largest - edges[-1] > _MOST_BINS * (edges[1] - edges[0]):
                raise ValueError(f"'{tensor}' needs more than {_MOST_BINS} bins")
        collect(values)

    collector.collect = bounded


def _clipped(seen: Any, largest: float) -> Any:
    """A tensor's range whose larger side is `largest`; the other side holds what was seen."""
    from onnxruntime.quantization.calibrate import TensorData

    low, high = (float(np.asarray(side).item()) for side in seen.range_value)
    low, high = (low, largest) if high >= -low else (-largest, high)
    sides = np.array([max(low, -largest), min(high, largest)], np.float32)
    return TensorData(lowest=sides[0], highest=sides[1])


def _require_images(images: np.ndarray, shape: tuple[int | str, ...]) -> None:
    if len(images) == 0:
        raise ExportError(
            "INT8 needs real calibration images, and there are none",
            hint="give a folder with a few hundred images like those the network will see",
        )
    sides = list(zip(images.shape, shape, strict=False))[1:]
    other = [size for size, taken in sides if isinstance(taken, int) and size != taken]
    if images.ndim != 4 or len(shape) != 4 or other:
        raise ExportError(
            f"calibration images are {list(images.shape)}, the network takes {list(shape)}",
            hint="preprocess them exactly as for inference",
        )


class _OneBatch:
    """A calibration data reader that holds one feed."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)

    def __len__(self) -> int:
        return 1
