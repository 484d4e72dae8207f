"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson, Run, TrustEngine
from hgkd_edge.cli.output import next_lines, show_result


def evaluate(
    run: Run = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A file exported from the run's model: .onnx, .xml or .plan."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="train, val, test or holdout; default: the held-out one."
        ),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Score the frozen backbone: k-NN, linear probe.")
    ] = False,
    trust_engine: TrustEngine = False,
    as_json: AsJson = False,
) -> None:
    """Score the fine-tuned model, or the backbone, on held-out images.

    Example: hgkd-edge evaluate runs/demo --model runs/demo/export/demo.fp32.onnx
    """
    from hgkd_edge.api.run import load

    chosen = load(run)
    result = chosen.evaluate(model, split=split, features=features, trust_engine=trust_engine)
    following = ("export {} --onnx --trt", "predict {} IMAGES")
    if "distilled" in result:
        following = ("finetune {} --task classify", "export {} --onnx --trt")
    show_result(result, as_json, *next_lines(str(chosen.path), *following))
