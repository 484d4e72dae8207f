"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgkd_edge.cli.options import AsJson, Run, TrustEngine
from hgkd_edge.cli.output import next_line, show

if TYPE_CHECKING:
    from hgkd_edge.score_records import ScoreRecord


def evaluate(
    run: Run = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A file exported from the run's model: .onnx, .xml or .plan."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or holdout; default: the held-out one."),
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
    from hgkd_edge.rundir import RunDir

    folder = RunDir.resolve(run)
    from hgkd_edge import evaluate as verb  # torch comes here
    from hgkd_edge.tables import score_table, task_table, warning_lines

    result: ScoreRecord
    if features or not (model or folder.model_file.is_file()):
        following = ("finetune {run} --task classify", "export {run} --onnx --trt")
        result = verb.evaluate_features(folder, split=split)
        table = score_table(result)
    else:
        following = ("export {run} --onnx --trt", "predict {run} IMAGES")
        result = verb.evaluate_model(folder, model=model, split=split, trust_engine=trust_engine)
        table = task_table(result)
    next_step = next_line(str(folder.path), *following)
    show(result.to_dict(), as_json, lambda: [table, *warning_lines(result.warnings), next_step])
