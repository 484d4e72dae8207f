"""hgkd-edge: distill a Vision Transformer into a dense CNN, export, verify and measure it.

    import hgkd_edge

    run = hgkd_edge.distill("recipe.yaml")       # images in, a run folder with a dense CNN out
    run = run.finetune("classify", "photos")     # train it for a task
    run.export(trt=True)                         # verified ONNX and TensorRT
    run.bench()                                  # latency on this machine
    run.predict("photos/test")                   # labels, maps or boxes, with pictures
    hgkd_edge.compare(run)                       # which file to deploy

    run = hgkd_edge.load("runs/demo")            # an existing run
    model = hgkd_edge.load_model("model.onnx")   # an exported file, on the edge device

Names are loaded on first use: importing the package loads neither torch nor any other library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgkd_edge.api.checking import check_data
    from hgkd_edge.api.comparing import compare
    from hgkd_edge.api.distilling import check, distill, dry_run, pretrain
    from hgkd_edge.api.embedding import Embeddings, embed
    from hgkd_edge.api.measuring import compare_measurements, estimate, measure, measure_pipeline
    from hgkd_edge.api.model import Model, Prediction, Predictions, load_model
    from hgkd_edge.api.result import Result
    from hgkd_edge.api.run import Run, load
    from hgkd_edge.api.streaming import predict_video, watch
    from hgkd_edge.bench.options import BenchOptions, RunBenchOptions
    from hgkd_edge.errors import (
        ConversionError,
        ConversionFailed,
        DataError,
        DeviceError,
        ExportError,
        Interrupted,
        MissingPackageError,
        OutOfMemory,
        RecipeError,
        RunError,
        StreamLost,
        TrainingError,
        UserError,
        VerificationFailed,
        WorkFailed,
        WrongOutputs,
    )
    from hgkd_edge.export_options import ExportOptions
    from hgkd_edge.export_record import ExportIncomplete
    from hgkd_edge.recipe import Recipe

__version__ = "0.1.0"

_HOME = {
    "BenchOptions": "bench.options",
    "Embeddings": "api.embedding",
    "ExportOptions": "export_options",
    "Model": "api.model",
    "Prediction": "api.model",
    "Predictions": "api.model",
    "Recipe": "recipe",
    "Result": "api.result",
    "Run": "api.run",
    "RunBenchOptions": "bench.options",
    "check": "api.distilling",
    "check_data": "api.checking",
    "compare": "api.comparing",
    "compare_measurements": "api.measuring",
    "distill": "api.distilling",
    "dry_run": "api.distilling",
    "embed": "api.embedding",
    "estimate": "api.measuring",
    "load": "api.run",
    "load_model": "api.model",
    "measure": "api.measuring",
    "measure_pipeline": "api.measuring",
    "predict_video": "api.streaming",
    "pretrain": "api.distilling",
    "watch": "api.streaming",
    "ConversionError": "errors",
    "ConversionFailed": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "ExportError": "errors",
    "ExportIncomplete": "export_record",
    "Interrupted": "errors",
    "MissingPackageError": "errors",
    "OutOfMemory": "errors",
    "RecipeError": "errors",
    "RunError": "errors",
    "StreamLost": "errors",
    "TrainingError": "errors",
    "UserError": "errors",
    "VerificationFailed": "errors",
    "WorkFailed": "errors",
    "WrongOutputs": "errors",
}

__all__ = [
    "BenchOptions",
    "ConversionError",
    "ConversionFailed",
    "DataError",
    "DeviceError",
    "Embeddings",
    "ExportError",
    "ExportIncomplete",
    "ExportOptions",
    "Interrupted",
    "MissingPackageError",
    "Model",
    "OutOfMemory",
    "Prediction",
    "Predictions",
    "Recipe",
    "RecipeError",
    "Result",
    "Run",
    "RunBenchOptions",
    "RunError",
    "StreamLost",
    "TrainingError",
    "UserError",
    "VerificationFailed",
    "WorkFailed",
    "WrongOutputs",
    "check",
    "check_data",
    "compare",
    "compare_measurements",
    "distill",
    "dry_run",
    "embed",
    "estimate",
    "load",
    "load_model",
    "measure",
    "measure_pipeline",
    "predict_video",
    "pretrain",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
