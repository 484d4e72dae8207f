"""The names that options take, as plain data: a command line that lists them needs no ONNX."""

from __future__ import annotations

__all__ = ["FLAVORS", "METHODS", "PRECISIONS"]

PRECISIONS = ("fp32", "fp16", "int8")  # of an exported file, from the widest
FLAVORS = ("tensorrt", "cpu")  # of an INT8 file: the runtime that it is quantized for
METHODS = ("percentile", "mean", "minmax", "entropy")  # of INT8 calibration; the first by default
