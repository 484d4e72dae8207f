"""Answer a camera's frames: boxes, labels or a tint on the picture, and where the time goes.

    python3 camera.py csi:0                     # GStreamer, a camera on the CSI connector
    python3 camera.py 0 --via opencv --show     # OpenCV, a USB camera, with a window
    python3 camera.py video.mp4 --out pictures --frames 100

`model.plan`, which `build_engine.py` makes, is run by TensorRT; without it `model.onnx` is run by
ONNX Runtime on the CPU. One JSON object per frame goes to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

from PIL import Image

from predict import ANSWERS, HERE, draw, load_settings, network_input, open_onnx, threshold_of

STAGES = ("capture", "prepare", "infer", "answer")
Show = Callable[[int, Image.Image, Dict[str, Any]], None]


def open_model(folder: Path = HERE) -> Any:
    """The engine that was built on this device, or the ONNX file where there is none."""
    plan = folder / "model.plan"
    if not plan.is_file():
        print("no model.plan: running model.onnx on the CPU", file=sys.stderr)
        return open_onnx(folder / "model.onnx")
    from engine import Engine

    return Engine(plan)


def watch(
    frames: Iterable[Image.Image],
    settings: Dict[str, Any],
    run: Any,
    *,
    threshold: float,
    show: Show,
    count: Optional[int] = None,
) -> Dict[str, float]:
    """Predict frame by frame, until the source ends or Ctrl-C.

    Args:
        frames: RGB images.
        settings: Settings of the model.
        run: The model.
        threshold: Lowest score of a box or a label.
        show: Called with each frame's number, image and answer.
        count: Frames to answer; None: all.

    Returns:
        Frames answered, `fps` from the first to the last, and the mean milliseconds of each stage.
    """
    spent = dict.fromkeys(STAGES, 0.0)
    read = ANSWERS[settings["task"]]
    number, mark = 0, time.perf_counter()
    begin = mark
    with contextlib.suppress(KeyboardInterrupt):  # how a camera without --frames ends
        for frame in frames:
            times = [mark, time.perf_counter()]
            batch = network_input(settings, frame)
            times.append(time.perf_counter())
            outputs = run(batch)
            times.append(time.perf_counter())
            answered = read(settings, outputs, frame, threshold)
            times.append(time.perf_counter())
            for stage, start, end in zip(STAGES, times, times[1:]):
                spent[stage] += end - start
            show(number, frame, answered)
            number, mark = number + 1, time.perf_counter()
            if number == count:
                break
    seconds = time.perf_counter() - begin
    means = {stage + "_ms": 1000 * total / max(1, number) for stage, total in spent.items()}
    return {"frames": number, "fps": number / seconds if number else 0.0, **means}


def main(given: Optional[List[str]] = None) -> int:
    """Predict frames of a camera until it ends or Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="csi:0, 0, /dev/video0, a video file, rtsp://...")
    parser.add_argument("--via", choices=("gstreamer", "opencv"), default="gstreamer")
    parser.add_argument("--frames", type=int, help="stop after this many")
    parser.add_argument(
        "--threshold", type=float, default=math.nan, help="lowest score of a box or a label"
    )
    parser.add_argument("--out", type=Path, help="folder for annotated images")
    parser.add_argument("--show", action="store_true", help="a window, through OpenCV")
    asked = parser.parse_args(given)
    settings = load_settings()
    if asked.via == "opencv":
        from capture_opencv import frames
    else:
        from capture_gstreamer import frames
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)

    def show(number: int, frame: Image.Image, answered: Dict[str, Any]) -> None:
        if asked.out or asked.show:
            picture = draw(settings, frame, answered)
            if asked.out:
                picture.save(str(asked.out / ("%06d.jpg" % number)))
            if asked.show:
                _window(picture)
        answered.pop("label_map", None)
        print(json.dumps({"frame": number, **answered}), flush=True)

    threshold = threshold_of(settings, asked.threshold)
    try:
        result = watch(
            frames(asked.source), settings, open_model(),
            threshold=threshold, show=show, count=asked.frames,
        )  # fmt: skip
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, ImportError) as error:
        print("error: %s" % error, file=sys.stderr)
        return 2
    print(json.dumps(result), file=sys.stderr)
    return 0


def _window(picture: Image.Image) -> None:
    import cv2
    import numpy as np

    cv2.imshow("hgkd-edge", np.asarray(picture)[:, :, ::-1])
    cv2.waitKey(1)


if __name__ == "__main__":
    sys.exit(main())
