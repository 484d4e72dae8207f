"""The command `finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson, Overrides, Run
from hgkd_edge.cli.output import announce, at_work, next_line, say, show
from hgkd_edge.processes import on_main

if TYPE_CHECKING:
    from hgkd_edge.rundir import RunDir
    from hgkd_edge.score_records import FinetuneRecord
    from hgkd_edge.tasks.config import FinetuneConfig


def finetune(
    run: Run = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="classify, segment or detect [default: classify]."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Labeled images; default: those of the run.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="distilled [default], timm or scratch: the initial weights."),
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
    from hgkd_edge.rundir import RunDir
    from hgkd_edge.tasks import config as settings

    def prepare() -> tuple[FinetuneConfig, RunDir, str]:
        folder = RunDir.resolve(run)
        named = {"task": task, "init": init, "data.path": data}
        asked = [f"{key}={value}" for key, value in named.items() if value is not None]
        if qat:
            return *_quantization_aware(folder, [*asked, *(overrides or ())], resume), ""
        if resume:
            return settings.resume(folder, [*asked, *(overrides or ())]), folder, ""
        chosen = settings.resolve(
            folder, task or "classify", data, init or "distilled", overrides or ()
        )
        if chosen.init == "distilled" and not folder.holds_finetuning:
            return chosen, folder, ""
        from hgkd_edge.finetune import starting_weights

        starting_weights(chosen)  # weights that are not available leave no folder behind
        if chosen.init == "distilled":
            return chosen, folder.branch(chosen.task), f"{folder.path} keeps its own model"
        return chosen, folder.branch(chosen.init), f"weights: {chosen.init}"

    chosen, folder, because = on_main(prepare)
    if resume and on_main(lambda: folder.is_finetuned):
        say(f"the fine-tuning in '{folder.path}' is finished: nothing to resume")
        result = folder.finetune_result()
    else:
        from hgkd_edge import finetune as verb

        with at_work(folder):
            result = verb.finetune(
                chosen, folder, resume=resume, opened=lambda: announce(folder, because)
            )
    if result is not None:  # the main process
        show(result.to_dict(), as_json, lambda: finetuned_lines(result, folder))


def _quantization_aware(
    folder: RunDir, overrides: list[str], resume: bool
) -> tuple[FinetuneConfig, RunDir]:
    """Settings and folder of `--qat`; what cannot work leaves no folder behind."""
    from hgkd_edge.errors import RunError
    from hgkd_edge.models.quantized import require_modelopt
    from hgkd_edge.tasks import config as settings

    require_modelopt()
    if not resume:
        return settings.quantization_aware(folder, overrides), folder.branch("qat")
    begun = settings.resume(folder, overrides)
    if begun.qat is None:
        raise RunError(
            f"the fine-tuning in '{folder.path}' is not quantization-aware",
            hint=f"hgkd-edge finetune {folder.path} --resume",
        )
    return begun, folder


def finetuned_lines(result: FinetuneRecord, run: RunDir) -> list[Any]:
    """What `finetune` left in a run, after its scores."""
    from hgkd_edge.tables import task_table, warning_lines

    lines: list[Any] = [f"model: {result.model}", f"model card: {result.card}"]
    if result.scores:
        lines.insert(0, task_table(result))
    export = "export {run} --onnx --trt"
    if result.int8_score is not None:
        lines.append(f"with INT8 simulated: {result.metric} {result.int8_score:.4f}")
        export = "export {run} --precision int8"
    commands = (export, "predict {run} IMAGES", "bench")
    return [*lines, *warning_lines(result.warnings), next_line(str(run.path), *commands)]
