"""INT8 by `exporters`, NNCF and ModelOpt's ONNX tools: score, latency, time, TensorRT.

    python -m benchmarks.int8_tools RUN [--tools ours nncf modelopt] [--max-drop 1] [--json]

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
from exporters.onnx_export import export_onnx
from exporters.onnx_info import read_onnx
from exporters.openvino_export import export_openvino
from exporters.quantize import FLAVORS, quantize_int8
from exporters.runtimes import Runner
from exporters.sensitivity import quantize_within, rank_layers
from exporters.trt_build import build_engine
from exporters.verify import verify
from hgkd_edge.export_record import MOST_SCORED
from hgkd_edge.exportable import Exportable, load_exportable
from hgkd_edge.finetune import evenly
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
    """Both flavors, without and with layers kept in float."""
    for flavor in FLAVORS:
        plain = job.path(f"ours {flavor}")
        quantize_int8(job.fp32, plain, images=job.images, flavor=flavor)
        yield f"ours, {flavor}", plain
    for flavor in FLAVORS:
        bounded = job.path(f"ours {flavor} bounded")
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
                bounded,
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
        yield f"ours, {flavor}, --max-drop: {len(found.kept_float)} layers in float", bounded


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

    def validate(
        candidate: onnx.ModelProto, pairs: Iterable[tuple[np.ndarray, int]]
    ) -> tuple[float, list[float]]:
        photos, truth = zip(*pairs, strict=True)
        runner = runtimes.open(candidate.SerializeToString()).run
        hits = classes_of(runner, np.stack(photos)) == np.array(truth)
        return float(hits.mean()), hits.astype(float).tolist()

    source = job.subject.splits[job.subject.unseen]
    scored = source.subset(evenly(len(source), MOST_SCORED))  # as `Exportable.score`
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
    "nncf": nncf,
    "modelopt": modelopt,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_tools")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--max-drop", type=float, default=1.0, help="points")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(arguments.run, arguments.tools, arguments.max_drop, Path(scratch))
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['case']:44} {row['seconds']:6.0f} s CPU  top-1 {row['top1']:6.2%} "
            f"(OpenVINO {row['openvino_top1']:6.2%})  unchanged {row['agreement']:.1%}  "
            f"time / fp32 {row['latency']:.2f} (OpenVINO {row['openvino_latency']:.2f})  "
            f"engine: {row['engine']}"
        )


def measure(folder: Path, tools: list[str], max_drop: float, scratch: Path) -> list[dict[str, Any]]:
    """A row for the fp32 file and for every INT8 file."""
    subject = load_exportable(RunDir(folder))
    fp32 = scratch / "fp32.onnx"
    export_onnx(subject.network, fp32, input_size=(3, *subject.spec.size))
    job = Job(subject, fp32, subject.images("train", CALIBRATION_PHOTOS), max_drop)
    cases, start = [("fp32", fp32, 0.0)], time.process_time()
    for tool in tools:
        for name, path in TOOLS[tool](job):
            cases.append((name, path, time.process_time() - start))
            start = time.process_time()
    photos = subject.images(subject.unseen, len(subject.splits[subject.unseen]))
    truth = subject.splits[subject.unseen].labels.numpy()
    files = [path for _, path, _ in cases]
    converted = [export_openvino(path, path.with_suffix(".xml")).path for path in files]
    fastest = latencies(files, photos[:1]), latencies(converted, photos[:1])
    wanted = classes_of(runtimes.open(fp32).run, photos)
    rows = []
    for i, (name, path, seconds) in enumerate(cases):
        found = classes_of(runtimes.open(path).run, photos)
        openvino = classes_of(runtimes.open(converted[i]).run, photos)
        rows.append(
            {
                "case": name,
                "seconds": seconds,
                "top1": float((found == truth).mean()),
                "openvino_top1": float((openvino == truth).mean()),
                "agreement": float((found == wanted).mean()),
                "latency": fastest[0][i] / fastest[0][0],
                "openvino_latency": fastest[1][i] / fastest[1][0],
                "engine": engine_of(path),
            }
        )
    return rows


def latencies(files: list[Path], image: np.ndarray) -> list[float]:
    """Median seconds of one image on one thread, the files in turn."""
    runners: list[Runner] = [runtimes.open(file, threads=1, exact=False).run for file in files]
    taken: list[list[float]] = [[] for _ in runners]
    for _ in range(ROUNDS):
        for runner, times in zip(runners, taken, strict=True):
            start = time.perf_counter()
            runner(image)
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


def engine_of(path: Path) -> str:
    """Whether a TensorRT release builds the file."""
    try:
        build = build_engine(path, path.with_suffix(".plan"))
    except UserError as error:
        return error.message
    return f"{build.backend} {build.version}"


if __name__ == "__main__":
    main()
