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
    from hgkd_edge.api.comparing import compare
    from hgkd_edge.api.distilling import check, distill, dry_run, pretrain
    from hgkd_edge.api.embedding import Embeddings, embed
    from hgkd_edge.api.model import Model, Prediction, Predictions, load_model
    from hgkd_edge.api.result import Result
    from hgkd_edge.api.run import Run, load
    from hgkd_edge.errors import (
        ConversionError,
        DataError,
        DeviceError,
        ExportError,
        Interrupted,
        MissingPackageError,
        RecipeError,
        RunError,
        TrainingError,
        UserError,
    )
    from hgkd_edge.recipe import Recipe

__version__ = "0.1.0"

_HOME = {
    "Embeddings": "api.embedding",
    "Model": "api.model",
    "Prediction": "api.model",
    "Predictions": "api.model",
    "Recipe": "recipe",
    "Result": "api.result",
    "Run": "api.run",
    "check": "api.distilling",
    "compare": "api.comparing",
    "distill": "api.distilling",
    "dry_run": "api.distilling",
    "embed": "api.embedding",
    "load": "api.run",
    "load_model": "api.model",
    "pretrain": "api.distilling",
    "ConversionError": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "ExportError": "errors",
    "Interrupted": "errors",
    "MissingPackageError": "errors",
    "RecipeError": "errors",
    "RunError": "errors",
    "TrainingError": "errors",
    "UserError": "errors",
}

__all__ = [
    "ConversionError",
    "DataError",
    "DeviceError",
    "Embeddings",
    "ExportError",
    "Interrupted",
    "MissingPackageError",
    "Model",
    "Prediction",
    "Predictions",
    "Recipe",
    "RecipeError",
    "Result",
    "Run",
    "RunError",
    "TrainingError",
    "UserError",
    "check",
    "compare",
    "distill",
    "dry_run",
    "embed",
    "load",
    "load_model",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
