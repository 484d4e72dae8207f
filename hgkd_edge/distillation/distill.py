"""Distillation: images and a frozen Transformer in, a run folder with a dense CNN out.

H-GKD (Heterogeneous Generative Knowledge Distillation with Masked Image Modeling, arXiv
2309.09571): the student sees the visible patches by sparse convolution and predicts, over the whole
image, the teacher's features.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hgkd_edge.console import warn
from hgkd_edge.distillation.check import Checked, check
from hgkd_edge.distillation.held_out import held_out_if_readable, not_better_than_the_mean
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.parts import Parts, build
from hgkd_edge.distillation.previews import save_previews
from hgkd_edge.distillation.setup import Setup, make_model, set_up
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.distillation.watching import Onlooker
from hgkd_edge.engine import Workplace, train
from hgkd_edge.engine.journal import rate_in
from hgkd_edge.errors import DataError
from hgkd_edge.manifest_record import Distilled, ManifestRecord
from hgkd_edge.models.backbone import EmbeddingNet, save_backbone
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.models.student import dense_copy
from hgkd_edge.processes import from_all, is_main
from hgkd_edge.provenance import record_met, split_record
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir

__all__ = ["distill", "first_updates"]


def distill(
    recipe: Recipe,
    run: RunDir,
    *,
    parts: Parts | None = None,
    resume: bool = False,
) -> Distilled | None:
    """Run a whole distillation into a run folder.

    Args:
        recipe: Fully resolved.
        run: Its folder; the same one to resume.
        parts: The recipe's networks, if already built.
        resume: Continue from the folder's checkpoint.

    Returns:
        What it left, as the manifest records it. None on processes other than the main one: their
        part ends with the training.
    """
    setup = set_up(recipe, run, parts or build(recipe), resume=resume)
    model = _train(setup, run, resume=resume)
    if model is None:
        return None
    _save(model, setup, run)
    held_out = held_out_if_readable(model, setup)
    try:
        save_previews(model, setup, run.previews_dir)
    except DataError as error:
        warn(f"no preview pictures: {error}")
    result = Distilled(held_out=held_out)
    if held_out is not None and (line := not_better_than_the_mean(held_out)):
        result.warnings = [line]
    run.update_manifest(ManifestRecord(result=result))
    return result


def first_updates(
    recipe: Recipe,
    run: RunDir,
    updates: int,
    *,
    parts: Parts | None = None,
    resume: bool = False,
) -> Checked | None:
    """Run the first updates of a distillation, up to a checkpoint, and check whether it works.

    Args:
        recipe: As for `distill`.
        run: As for `distill`, which continues it with `resume`.
        updates: Number of updates.
        parts: As for `distill`.
        resume: As for `distill`.

    Returns:
        What was found; None on processes other than the main one.
    """
    setup = set_up(recipe, run, parts or build(recipe), resume=resume)
    before = dense_copy(setup.parts.encoder)
    model = _train(setup, run, resume=resume, until=updates)
    if model is None:
        return None
    return check(model, setup, before, images_per_s=rate_in(run.log_file))


def _train(
    setup: Setup, run: RunDir, *, resume: bool, until: int | None = None
) -> StudentWithLoss | None:
    """The trained student, and its teacher on the same device; None on the other processes."""
    recipe, parts, teacher = setup.recipe, setup.parts, setup.teacher
    torch.manual_seed(recipe.seed)  # same decoder with or without pre-training
    task = Distilling(make_model(recipe, parts, teacher), teacher, parts, recipe, setup.cache)
    place = Workplace(
        log_file=run.log_file,
        checkpoint_file=run.checkpoint_file,
        tracker_dir=run.path,
        resume_command=run.resume_command,
    )
    trained = train(
        task,
        setup.source,
        recipe.train,
        seed=recipe.seed,
        place=place,
        label="distilling",
        resume=resume,
        until=until,
        watch=Onlooker(setup),
    )
    assert isinstance(trained, StudentWithLoss)
    met = from_all(split_record(setup.source))
    if not is_main():
        return None
    record_met(run, met)
    teacher.to(next(trained.parameters()).device)
    return trained


def _save(model: StudentWithLoss, setup: Setup, run: RunDir) -> None:
    """Densify, calibrate BatchNorm on whole images, write the backbone and record it."""
    dense, spec = dense_copy(model.student.encoder), setup.parts.spec
    recalibrate_batchnorm(EmbeddingNet(dense, spec), setup.source, spec)
    spec = replace(spec, bits=setup.source.bits)
    save_backbone(dense, spec, run.backbone_file)
    run.add_artifact(run.backbone_file, made_from=[run.checkpoint_file])
