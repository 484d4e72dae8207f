"""A command's result as lines for people: what was made, what is wrong with it, what comes next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgkd_edge.rundir import RunDir

__all__ = ["distilled_lines", "finetuned_lines", "grid_lines", "next_line"]


def distilled_lines(result: dict[str, Any]) -> list[Any]:
    """What `distill` left, and how well it predicts features."""
    from hgkd_edge.tables import warning_lines

    run = result["run"]
    if "signs" in result:
        return _checked_lines(result)
    held_out = result["held_out"]
    lines: list[Any] = [f"run folder: {run}", f"dense backbone: {run}/backbone.safetensors"]
    if held_out:
        lines.append(
            f"teacher features at {held_out['sites']} sites of {held_out['photos']} held-out "
            "photos: cosine "
            f"{held_out['student']:.3f} (mean token: {held_out['mean_token']:.3f})"
        )
    lines += warning_lines(result)
    return [*lines, next_line(run, "evaluate", "export {run} --onnx --trt", "bench")]


def _checked_lines(result: dict[str, Any]) -> list[str]:
    """Whether a distillation works so far, and how to continue it."""
    signs, doubts = result["signs"], result["doubts"]
    if not signs and not doubts:
        verdict = "nothing to judge by: no image is held out (data.holdout)"
    elif doubts:
        verdict = "no clear sign that distillation works yet" if not signs else "mixed signs so far"
    else:
        verdict = "distillation works so far"
    again = next_line(result["run"], "distill {run}/recipe.yaml --resume --run {run}")
    return [
        verdict,
        *(f"  yes: {line}" for line in signs),
        *(f"  no: {line}" for line in doubts),
        f"  the whole run takes {result['hours']:.1f} h at {result['images_per_s']:.0f} images/s",
        again,
    ]


def next_line(run: str, *commands: str) -> str:
    """What to type next, each command with the run that it is for."""
    quoted = shlex.quote(run)
    named = [c.format(run=quoted) if "{run}" in c else f"{c} {quoted}" for c in commands]
    return "next: " + ", ".join(f"hgkd-edge {command}" for command in named)


def finetuned_lines(result: dict[str, Any], run: RunDir) -> list[Any]:
    """What `finetune` left in a run, after its scores."""
    from hgkd_edge.tables import task_table, warning_lines

    lines: list[Any] = [f"model: {result['model']}", f"model card: {result['card']}"]
    if "scores" in result:
        lines.insert(0, task_table(result))
    commands = ("export {run} --onnx --trt", "predict {run} IMAGES", "bench")
    return [*lines, *warning_lines(result), next_line(str(run.path), *commands)]


def grid_lines(result: dict[str, Any]) -> list[str]:
    """The sizes on which student and teacher meet."""
    mask, tokens = result["mask_grid"], result["token_grid"]
    return [
        f"  mask: {mask[0]}x{mask[1]} patches of {result['mask_patch']} px",
        f"  tokens: {tokens[0]}x{tokens[1]}, the teacher sees {result['teacher_size']}",
    ]
