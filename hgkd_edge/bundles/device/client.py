"""Ask a Triton server about images: numpy, Pillow and tritonclient[grpc], Python 3.8 or later.

    pip install "tritonclient[grpc]" pillow
    python3 client.py photo.jpg --url localhost:8001

Preprocessing and answers come from `predict.py`, next to this file.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Dict

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from predict import answer, image_files, load_image, load_settings, threshold_of


def open_server(url: str, model: str, input_name: str) -> Any:
    """The model on the server as a function from the network's input to its outputs by name.

    Raises:
        InferenceServerException: The server does not answer, or does not serve the model.
    """
    server = grpc.InferenceServerClient(url=url)
    names = [output.name for output in server.get_model_metadata(model).outputs]

    def run(batch: np.ndarray) -> Any:
        kind = "UINT8" if batch.dtype == np.uint8 else "FP32"
        feed = grpc.InferInput(input_name, list(batch.shape), kind)
        feed.set_data_from_numpy(batch)
        wanted = [grpc.InferRequestedOutput(name) for name in names]
        result = server.infer(model, [feed], outputs=wanted)
        return {name: result.as_numpy(name) for name in names}

    return run


def main() -> int:
    """Send images to the server and print the answers; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--url", default="localhost:8001", help="host:port of the server")
    parser.add_argument(
        "--threshold", type=float, default=math.nan, help="lowest score of a box or a label"
    )
    asked = parser.parse_args()
    settings = load_settings()
    try:
        run = open_server(asked.url, settings["name"], settings["input_name"])
    except InferenceServerException as error:
        print("error: the server at %s: %s" % (asked.url, error), file=sys.stderr)
        return 2
    threshold = threshold_of(settings, asked.threshold)
    failed = 0
    for file in image_files(asked.images):
        record: Dict[str, Any] = {"photo": str(file)}
        try:
            answered = answer(settings, run, load_image(file, settings["bits"]), threshold)
            answered.pop("label_map", None)
            record.update(answered)
        except Exception as error:  # a damaged file may raise anything; the others are answered
            record["error"] = str(error) or type(error).__name__
            failed += 1
        print(json.dumps(record), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
