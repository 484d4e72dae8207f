"""The command `finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson, Overrides, Run
from hgkd_edge.cli.output import next_line, show_result
from hgkd_edge.processes import is_main


def finetune(
    run: Run = None,
    task: Annotated[
        str | None, typer.Option(help="classify, segment or detect [default: classify].")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labeled images; default: those of the run.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="distilled (default); or timm, scratch: to compare with."),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume where it stopped, with its own settings.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the run's backbone for a task; leave model.safetensors and a model card.

    A run keeps one fine-tuned model: a second one, and one not initialized from the run's weights,
    gets a separate run next to it, RUN-TASK or RUN-INIT.

    Example: hgkd-edge finetune runs/demo --task classify --data photos --set train.epochs=30
    """
    from hgkd_edge.api.run import load

    tuned = load(run).finetune(task, data, init=init, overrides=overrides or (), resume=resume)
    if is_main():
        commands = ("export {run} --onnx --trt", "predict {run} IMAGES", "bench")
        show_result(tuned.finetuned, as_json, next_line(str(tuned.path), *commands))
