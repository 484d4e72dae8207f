"""Accuracy cost of INT8 for fine-tuned classifiers: held-out top-1 and unchanged predictions.

    python -m benchmarks.int8_accuracy RUN... [--methods percentile minmax] [--max-drop 0.5]

Every RUN is a folder with a fine-tuned classifier. It is exported like `hgkd-edge export
--precision int8` does (512 training images for calibration, both flavors; with `--max-drop`, the
worst layers in float). ONNX Runtime runs the exported files on the whole held-out split, and
OpenVINO also runs the `cpu` flavor.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from exporters import runtimes
from exporters.calibrate import calibrate
from exporters.choices import FLAVORS, METHODS
from exporters.onnx_export import export_onnx
from exporters.onnx_info import read_onnx
from exporters.openvino_export import export_openvino
from exporters.quantize import quantize_int8
from exporters.runtimes import Runner
from exporters.sensitivity import quantize_within, rank_layers
from exporters.verify import verify
from hgkd_edge.exportable import Exportable, load_exportable
from hgkd_edge.rundir import RunDir

CALIBRATION_PHOTOS = 512
RANKING_PHOTOS = 32
PROOF_PHOTOS = 64  # as in `hgkd-edge export`
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_accuracy")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[METHODS[0]])
    parser.add_argument("--max-drop", type=float, help="points; as in hgkd-edge export")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for run in arguments.runs:
        for row in measure(run, arguments.methods, arguments.max_drop):
            rows.append(row)
            if not arguments.json:
                print(
                    f"{row['run']}  {row['case']:28}  top-1 {row['top1']:6.2%}  "
                    f"lost {100 * row['lost']:+.2f} points  agrees {row['agreement']:.2%}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(rows, indent=1))


def measure(folder: Path, methods: list[str], max_drop: float | None) -> Iterator[dict[str, Any]]:
    """A row for the float network and for every INT8 file."""
    subject = load_exportable(RunDir(folder))
    photos = subject.images(subject.unseen, len(subject.splits[subject.unseen]))
    truth = subject.splits[subject.unseen].labels.numpy()
    float_classes: np.ndarray | None = None
    for case, runner in _cases(subject, methods, max_drop):
        found = classes_of(runner, photos)
        float_classes = found if float_classes is None else float_classes
        top1 = float((found == truth).mean())
        yield {
            "run": folder.name,
            "case": case,
            "photos": len(photos),
            "top1": top1,
            "lost": float((float_classes == truth).mean()) - top1,
            "agreement": float((found == float_classes).mean()),
        }


def _cases(
    subject: Exportable, methods: list[str], max_drop: float | None
) -> Iterator[tuple[str, Runner]]:
    """Yield the float network first."""
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = Path(scratch) / "fp32.onnx"
        export_onnx(subject.network, fp32, input_size=(3, *subject.spec.size))
        yield "fp32", runtimes.open(fp32).run
        images = subject.images("train", CALIBRATION_PHOTOS)
        held_out = subject.images(subject.unseen, PROOF_PHOTOS)
        for method in methods:
            calibration = calibrate(read_onnx(fp32), images, method=method)
            for flavor in FLAVORS:
                path = Path(scratch) / f"{method}-{flavor}.onnx"
                kept = 0
                if max_drop is None:
                    quantize_int8(fp32, path, calibration=calibration, flavor=flavor)
                else:
                    few = images[:: len(images) // RANKING_PHOTOS]
                    bounded = quantize_within(
                        fp32,
                        path,
                        calibration=calibration,
                        ranking=rank_layers(fp32, calibration, few, flavor=flavor),
                        score=subject.score,
                        proof=functools.partial(
                            verify, runtimes.open(fp32).run, images=held_out, precision="int8"
                        ),
                        max_drop=max_drop,
                        flavor=flavor,
                    )
                    kept = len(bounded.kept_float)
                yield f"{method}, {flavor}, {kept} in float", runtimes.open(path).run
                if flavor == "cpu":
                    export_openvino(path, path.with_suffix(".xml"))
                    yield f"{method}, cpu in OpenVINO", runtimes.open(path.with_suffix(".xml")).run


def classes_of(runner: Runner, photos: np.ndarray) -> np.ndarray:
    """The predicted class of every image, int64 [N]."""
    parts = [runner(photos[i : i + BATCH]) for i in range(0, len(photos), BATCH)]
    (name,) = parts[0]
    return np.concatenate([part[name].argmax(axis=1) for part in parts])


if __name__ == "__main__":
    main()
