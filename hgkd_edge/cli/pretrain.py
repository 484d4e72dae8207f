"""The command `pretrain`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson, Overrides, RecipeName
from hgkd_edge.cli.output import show


def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pre-train only a recipe's teacher, without labels.

    `distill` does it too. If it is stopped, the same command resumes it.

    Example: hgkd-edge pretrain demo-teacher
    """
    from hgkd_edge.errors import RecipeError
    from hgkd_edge.recipe import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), overrides or ())
    if loaded.teacher.weights != "pretrain":
        raise RecipeError(
            f"teacher.weights = '{loaded.teacher.weights}': only 'pretrain' is trained here",
            hint="--set teacher.weights=pretrain",
        )
    from hgkd_edge.data.sources import open_splits
    from hgkd_edge.distillation.parts import build
    from hgkd_edge.distillation.pretrain import pretrain_teacher

    parts = build(loaded)
    source = open_splits(loaded.data)["train"]
    weights = pretrain_teacher(parts.vit, source, loaded, size=parts.teacher_size)
    show({"weights": str(weights)}, as_json, lambda: [f"teacher: {weights}"])
