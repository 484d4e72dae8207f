"""The command `finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson, Overrides, Run
from hgkd_edge.cli.output import next_lines, show_result
from hgkd_edge.processes import is_main


def finetune(
    run: Run = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            metavar="NAME",
            help="classify, multilabel, segment or detect [default: classify].",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", "-d", metavar="PATH", help="Labeled images; default: those of the run."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="distilled [default], timm or scratch: the initial weights."
        ),
    ] = None,
    qat: Annotated[
        bool,
        typer.Option("--qat", help="Continue the run's fine-tuning with INT8 simulated."),
    ] = False,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume a stopped fine-tuning with its settings.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a run's backbone to classify, segment or detect.

    A run keeps one fine-tuned model: a second one, and one not initialized from the run's weights,
    gets a separate run next to it, RUN-TASK or RUN-INIT. --qat trains a fine-tuned model further so
    that it loses less in INT8, and leaves RUN-qat.

    Example: hgkd-edge finetune runs/demo --task classify --data photos --set train.epochs=30
    """
    from hgkd_edge.api.run import load

    tuned = load(run).finetune(
        task, data, init=init, overrides=overrides or (), resume=resume, qat=qat
    )
    if is_main():
        result = tuned.finetuned
        show_result(result, as_json, *next_step(str(tuned.path), qat="int8_score" in result))


def next_step(run: str, *, qat: bool) -> list[str]:
    """What follows a fine-tuning."""
    export = "--precision int8" if qat else "--onnx --trt"
    return next_lines(run, f"export {{}} {export}", "predict {} IMAGES", "bench")
