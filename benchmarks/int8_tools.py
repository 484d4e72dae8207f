"""INT8 by `exporters`, NNCF and ModelOpt's ONNX tools: score, latency, time, TensorRT.

    python -m benchmarks.int8_tools RUN [--tools ours bounded nncf modelopt] [--max-drop 1] [--json]

RUN is a folder with a fine-tuned classifier. Each tool quantizes its fp32 ONNX file with the same
512 training images. Every file is scored on the whole held-out split in ONNX Runtime and OpenVINO,
timed with one image and one thread, and built as a TensorRT engine if a release is installed.
Latency is relative to the fp32 file in the same runtime; the files take turns. The time taken is
CPU time.

NNCF and ModelOpt's ONNX tools are not part of an extra: `pip install nncf` or
`pip install "nvidia-modelopt[onnx]"`, which replaces onnx and onnxruntime by older releases.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.int8_accuracy import (
    CALIBRATION_PHOTOS,
    PROOF_PHOTOS,
    RANKING_PHOTOS,
    classes_of,
)
from exporters import UserError, runtimes
from exporters.calibrate import calibrate
from exporters.choices import FLAVORS, METHODS
from exporters.onnx_export import export_onnx
from exporters.onnx_info import read_onnx
from exporters.openvino_export import export_openvino
from exporters.quantize import quantize_int8
from exporters.runtimes import Runner
from exporters.sensitivity import quantize_within, rank_layers
from exporters.trt_build import build_engine
from exporters.verify import verify
from hgkd_edge.export_record import MOST_SCORED
from hgkd_edge.exportable import Exportable, load_exportable
from hgkd_edge.rundir import RunDir

ROUNDS = 300


@dataclass(frozen=True)
class Job:
    """What every tool is given: the fp32 file, images, and the bound on the score."""

    subject: Exportable
    fp32: Path
    images: np.ndarray  # f32[N, 3, H, W]
    max_drop: float

    def path(self, name: str) -> Path:
        return self.fp32.with_name(f"{name.replace(' ', '-')}.onnx")


def ours(job: Job) -> Iterator[tuple[str, Path]]:
    """Both flavors, with every kind of ranges."""
    for method in METHODS:
        for flavor in FLAVORS:
            plain = job.path(f"ours {flavor} {method}")
            quantize_int8(job.fp32, plain, images=job.images, flavor=flavor, method=method)
            yield f"ours, {flavor}, {method}", plain


def bounded(job: Job) -> Iterator[tuple[str, Path]]:
    """Both flavors with as many layers in float as the bound asks for."""
    for flavor in FLAVORS:
        path = job.path(f"ours {flavor} bounded")
        calibration = calibrate(read_onnx(job.fp32), job.images)
        few = job.images[:: len(job.images) // RANKING_PHOTOS]
        proof = functools.partial(
            verify,
            runtimes.open(job.fp32).run,
            images=job.subject.images(job.subject.unseen, PROOF_PHOTOS),
            precision="int8",
        )
        try:
            found = quantize_within(
                job.fp32,
                path,
                calibration=calibration,
                ranking=rank_layers(job.fp32, calibration, few, flavor=flavor),
                score=job.subject.score,
                proof=proof,
                max_drop=job.max_drop,
                flavor=flavor,
            )
        except UserError as error:
            print(f"ours, {flavor}, --max-drop: {error.message}", file=sys.stderr)
            continue
        yield f"ours, {flavor}, --max-drop: {len(found.kept_float)} layers in float", path


def nncf(job: Job) -> Iterator[tuple[str, Path]]:
    """Post-training quantization, and with accuracy control, of the ONNX file."""
    import nncf as library
    from nncf.quantization.advanced_parameters import QuantizationParameters

    model = onnx.load(job.fp32)
    name = model.graph.input[0].name
    data = library.Dataset([image[None] for image in job.images], lambda image: {name: image})
    size = len(job.images)
    # ONNX Runtime refuses NNCF's default: a scale per channel for inputs of depthwise convolutions.
    per_tensor = library.AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False)
    )
    plain = job.path("nncf")
    quantized = library.quantize(model, data, subset_size=size, advanced_parameters=per_tensor)
    onnx.save(quantized, plain)
    yield "NNCF", plain
    # As TensorRT takes it, but for unsigned inputs: NNCF 3.4 refuses `signedness_to_force`.
    heads = [node.name for node in model.graph.node if node.op_type in ("Gemm", "MatMul")]
    others = {node.op_type for node in model.graph.node} - {"Conv", "ConvTranspose"}
    symmetric = job.path("nncf symmetric")
    quantized = library.quantize(
        model,
        data,
        subset_size=size,
        preset=library.QuantizationPreset.PERFORMANCE,
        ignored_scope=library.IgnoredScope(names=heads, types=sorted(others), validate=False),
        advanced_parameters=per_tensor,
    )
    onnx.save(quantized, symmetric)
    yield "NNCF, symmetric, inputs of convolutions", symmetric

    def validate(
        candidate: onnx.ModelProto, pairs: Iterable[tuple[np.ndarray, int]]
    ) -> tuple[float, list[float]]:
        photos, truth = zip(*pairs, strict=True)
        runner = runtimes.open(candidate.SerializeToString()).run
        hits = classes_of(runner, np.stack(photos)) == np.array(truth)
        return float(hits.mean()), hits.astype(float).tolist()

    source = job.subject.splits[job.subject.unseen]
    scored = source.sample(MOST_SCORED)  # as `Exportable.score`
    photos = job.subject.images(job.subject.unseen, MOST_SCORED)
    bounded = job.path("nncf bounded")
    kept = library.quantize_with_accuracy_control(
        model,
        data,
        library.Dataset(list(zip(photos, scored.labels.tolist(), strict=True))),
        validate,
        max_drop=job.max_drop / 100,
        subset_size=size,
        advanced_quantization_parameters=per_tensor,
    )
    onnx.save(kept, bounded)
    yield "NNCF, accuracy control", bounded


def modelopt(job: Job) -> Iterator[tuple[str, Path]]:
    """ModelOpt's ONNX quantization with both of its calibrations."""
    from modelopt.onnx.quantization import quantize

    for method in ("entropy", "max"):
        path = job.path(f"modelopt {method}")
        quantize(
            str(job.fp32),
            calibration_data=job.images,
            calibration_method=method,
            calibration_eps=["cpu"],
            output_path=str(path),
            high_precision_dtype="fp32",
            log_level="ERROR",
        )
        yield f"ModelOpt, {method}", path


TOOLS: dict[str, Callable[[Job], Iterator[tuple[str, Path]]]] = {
    "ours": ours,
    "bounded": bounded,
    "nncf": nncf,
    "modelopt": modelopt,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_tools")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--max-drop", type=float, default=1.0, help="points")
    parser.add_argument("--json", action="store_true", help="a line of JSON per file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for row in measure(arguments.run, arguments.tools, arguments.max_drop, Path(scratch)):
            print(json.dumps(row) if arguments.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:44} {row['seconds']:6.0f} s CPU  top-1 {row['top1']:6.2%} "
        f"(OpenVINO {row['openvino_top1']:6.2%})  unchanged {row['agreement']:.1%}  "
        f"time / fp32 {row['latency']:.2f} (OpenVINO {row['openvino_latency']:.2f})  "
        f"engine: {row['engine']}"
    )


def measure(
    folder: Path, tools: list[str], max_drop: float, scratch: Path
) -> Iterator[dict[str, Any]]:
    """A row for the fp32 file and for every INT8 file, as soon as it is measured."""
    subject = load_exportable(RunDir(folder))
    fp32 = scratch / "fp32.onnx"
    export_onnx(subject.network, fp32, input_size=(3, *subject.spec.size))
    job = Job(subject, fp32, subject.images("train", CALIBRATION_PHOTOS), max_drop)
    held_out = subject.splits[subject.unseen]
    judge = Judge(fp32, subject.images(subject.unseen, len(held_out)), held_out.labels.numpy())
    yield judge.row("fp32", fp32, 0.0)
    for tool in tools:
        start = time.process_time()
        for name, path in TOOLS[tool](job):
            yield judge.row(name, path, time.process_time() - start)
            start = time.process_time()


class Judge:
    """Scores and times files, relative to the fp32 file.

    Args:
        fp32: The ONNX file that all others are made from.
        photos: f32[N, 3, H, W] held-out images.
        truth: Their classes, int64[N].
    """

    def __init__(self, fp32: Path, photos: np.ndarray, truth: np.ndarray) -> None:
        self._fp32, self._photos, self._truth = fp32, photos, truth
        self._fp32_xml = _converted(fp32)
        self._wanted = classes_of(runtimes.open(fp32).run, photos)

    def row(self, name: str, path: Path, seconds: float) -> dict[str, Any]:
        """What is known of a file that took `seconds` of CPU time to make."""
        converted = _converted(path)
        found = classes_of(runtimes.open(path).run, self._photos)
        openvino = classes_of(runtimes.open(converted).run, self._photos)
        image = self._photos[:1]
        return {
            "case": name,
            "seconds": seconds,
            "top1": float((found == self._truth).mean()),
            "openvino_top1": float((openvino == self._truth).mean()),
            "agreement": float((found == self._wanted).mean()),
            "latency": relative_latency(path, self._fp32, image),
            "openvino_latency": relative_latency(converted, self._fp32_xml, image),
            "engine": engine_of(path),
        }


def _converted(path: Path) -> Path:
    return export_openvino(path, path.with_suffix(".xml")).path


def relative_latency(file: Path, reference: Path, image: np.ndarray) -> float:
    """Median time of one image on one thread, over that of the reference; they take turns."""
    runners: list[Runner] = [
        runtimes.open(path, threads=1, exact=False).run for path in (file, reference)
    ]
    taken: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for runner, times in zip(runners, taken, strict=True):
            start = time.perf_counter()
            runner(image)
            times.append(time.perf_counter() - start)
    return statistics.median(taken[0]) / statistics.median(taken[1])


def engine_of(path: Path) -> str:
    """Whether a TensorRT release builds the file."""
    try:
        build = build_engine(path, path.with_suffix(".plan"))
    except UserError as error:
        return error.message
    return f"{build.backend} {build.version}"


if __name__ == "__main__":
    main()
