"""Distillation: photos and a frozen Transformer in, a run folder with a dense CNN out.

H-GKD (Heterogeneous Generative Knowledge Distillation with Masked Image Modeling, arXiv
2309.09571): the student sees the visible patches by sparse convolution and predicts, over the whole
image, what the teacher infers from it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.confidence import mean_interval
from hgkd_edge.console import console, warn
from hgkd_edge.data.augment import center_view, normalize, random_view
from hgkd_edge.data.masks import random_masks, visible_count
from hgkd_edge.data.sources import ImageSource, held_out_split, open_splits
from hgkd_edge.engine import Draws, Inputs, Workplace, train
from hgkd_edge.errors import DataError
from hgkd_edge.models.backbone import EmbeddingNet, save_backbone
from hgkd_edge.models.batchnorm import recalibrate_batchnorm
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.distillation import Distillation
from hgkd_edge.models.student import Student
from hgkd_edge.models.teacher import (
    BUNDLED_TEACHER,
    Teacher,
    forbids_commerce,
    load_vit_weights,
    teacher_licence,
)
from hgkd_edge.parts import Parts, build
from hgkd_edge.pretrain import pretrain_teacher
from hgkd_edge.processes import from_all, is_main
from hgkd_edge.provenance import circumstances, record_met, report_photos
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir, file_sha256
from hgkd_edge.sparse import densify

__all__ = ["Distilling", "distill", "held_out_cosine", "teacher_origin"]

SAMPLE = 4096  # photos of a split that are enough to judge a prediction by


class Distilling:
    """Task: predict the teacher's tokens; K masks of an image share one teacher pass."""

    layer_decay: float | None = None

    def __init__(self, model: Distillation, teacher: Teacher, parts: Parts, recipe: Recipe) -> None:
        self.model: nn.Module = model
        self.teacher, self.parts, self.recipe = teacher, parts, recipe
        self.updates_per_batch = recipe.mask.per_image
        self.capturable = recipe.student.backend != "spconv"  # which counts its sites on the host

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        data, parts, ratio = self.recipe.data, self.parts, self._ratio(draws)
        view = random_view(
            images, draws.on_cpu(len(images), 5), size=data.size, scale=data.crop_scale
        )
        per_image = visible_patches(parts, ratio)
        shared = self._shared_targets(view)
        for _ in range(self.updates_per_batch):
            visible = draw_visible(draws, len(view), parts, ratio)
            targets = shared
            if targets is None:
                tokens = _tokens(visible, parts)
                seen = per_image * tokens[0].numel() // visible[0].numel()
                targets = self.teacher.targets(view, tokens, seen)
            yield view, visible, targets, per_image

    def _shared_targets(self, view: Tensor) -> Tensor | None:
        """Targets that no mask changes, [B, N, D]; None where every mask has its own."""
        if not self.recipe.loss.feature_weight:
            return view.new_zeros(len(view), 1)  # nothing looks at them: the teacher rests
        return self.teacher(view) if self.recipe.teacher.view == "full" else None

    def _ratio(self, draws: Draws) -> float:
        """Share of masked patches in this update: none in the last `whole_share` of them."""
        mask = self.recipe.mask
        return 0.0 if draws.progress >= 1 - mask.whole_share else mask.ratio


def draw_visible(draws: Draws, count: int, parts: Parts, ratio: float) -> Tensor:
    """Masks for `count` images on the grid of the student's deepest stride, bool [B, h, w]."""
    grid = parts.mask_grid
    visible = random_masks(draws.uniform(count, grid[0] * grid[1]), grid, ratio)
    return upsample_mask(visible, [side // parts.encoder.patch for side in parts.spec.size])


def visible_patches(parts: Parts, ratio: float) -> int:
    """How many of an image's patches a mask of `draw_visible` shows, the same for every image."""
    rows, columns = (side // parts.encoder.patch for side in parts.spec.size)
    h, w = parts.mask_grid
    return visible_count((h, w), ratio) * (rows // h) * (columns // w)


def _tokens(visible: Tensor, parts: Parts) -> Tensor:
    """Masks bool [B, h, w] on the teacher's tokens: bool [B, N]."""
    return upsample_mask(visible, parts.token_grid).flatten(1)


def distill(
    recipe: Recipe, run: RunDir, *, parts: Parts | None = None, resume: bool = False
) -> dict[str, Any]:
    """Run a whole distillation into a run folder.

    Args:
        recipe: Fully resolved.
        run: Its folder; the same one to resume.
        parts: The recipe's networks, where they are built already.
        resume: Go on from the folder's checkpoint.

    Returns:
        What the manifest says of the result: steps, held-out cosine, skipped photos, artefacts.
        Nothing on processes beside the main one, whose part ends with the training.
    """
    parts = parts or build(recipe)
    splits = open_splits(recipe.data)
    report_photos(splits)
    source = splits["train"]
    if is_main():
        run.update_manifest(
            **circumstances(seed=recipe.seed, precision=recipe.train.precision, splits=splits)
        )
    teacher, weights = _load_teacher(recipe, parts, source, resume_command=run.resume_command)
    if is_main():
        run.update_manifest(teacher=weights)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.teacher.standardize and recipe.loss.feature_weight:
        _standardize(teacher.to(device), source, parts, recipe)
    torch.manual_seed(recipe.seed)  # the decoder starts the same, teacher pre-trained now or before
    student = Student(
        parts.encoder,
        teacher_width=teacher.width,
        decoder_width=recipe.student.decoder_width,
        pixels=recipe.loss.pixel_weight > 0,
    )
    model = Distillation(student, recipe.loss, parts.spec.mean, parts.spec.std)
    task = Distilling(model, teacher.to(device), parts, recipe)
    place = Workplace(
        log_file=run.log_file,
        checkpoint_file=run.checkpoint_file,
        tracker_dir=run.path,
        resume_command=run.resume_command,
    )
    trained = train(
        task, source, recipe.train, seed=recipe.seed, place=place, label="distilling", resume=resume
    )
    assert isinstance(trained, Distillation)
    met = from_all({"skipped": source.skipped, "noted": source.noted})
    if not is_main():
        return {}
    record_met(run, met)
    _save(trained, parts, source, run)
    held_out = _held_out_if_readable(trained, teacher, parts, splits, recipe)
    result: dict[str, Any] = {"held_out": held_out}
    if line := _not_better_than_the_mean(held_out):
        result["warnings"] = [line]
    run.update_manifest(result=result)
    return result


def _held_out_if_readable(*of: Any) -> dict[str, Any]:
    """The training is done: photos that cannot be read any more cost its score and no more."""
    try:
        return held_out_cosine(*of)
    except DataError as error:
        warn(f"no held-out score: {error}")
        return {}


def _not_better_than_the_mean(held_out: Mapping[str, Any]) -> str:
    """One line that says so when the student predicts no better than the mean token; else ''."""
    if not held_out:
        return ""
    low, high = held_out["gain_ci95"]
    if low > 0:
        return ""
    return (
        f"the student predicts teacher features no better than the mean token: cosine "
        f"{held_out['student']:.3f} against {held_out['mean_token']:.3f}, difference "
        f"{low:.3f} to {high:.3f} (95 % interval over {held_out['photos']} images)"
    )


@torch.inference_mode()
def held_out_cosine(
    model: Distillation,
    teacher: Teacher,
    parts: Parts,
    splits: dict[str, ImageSource],
    recipe: Recipe,
) -> dict[str, Any]:
    """Cosine similarity of predicted and true teacher tokens on held-out photos.

    At masked sites; at visible ones where the teacher sees no others, and at all where the recipe
    masks none. The trivial predictor beside it knows the training photos' mean token of each place.

    Returns:
        `student` and `mean_token` cosine, `gain_ci95` (the 95 % interval of their difference, over
        photos), `sites` (masked, visible or all) and `photos`; empty when nothing was held out, or
        no features were learnt.

    Raises:
        DataError: Photos that were to be decoded now cannot be read.
    """
    held_out = held_out_split(splits)
    if held_out is None or not recipe.loss.feature_weight:
        return {}
    model.eval()
    device = next(model.parameters()).device
    draws = Draws(torch.Generator().manual_seed(recipe.seed), 0, 1, device)
    mean_token, _ = teacher.moments(_teacher_views(_sample(splits["train"]), draws, parts, recipe))
    only_visible = recipe.teacher.view == "visible"
    sites = "visible" if only_visible else "masked" if recipe.mask.ratio else "all"
    ours, trivial, gains = [], [], []
    for images in _sample(splits[held_out]):
        view = center_view(images.to(device), size=recipe.data.size)
        visible = draw_visible(draws, len(view), parts, recipe.mask.ratio)
        tokens = _tokens(visible, parts)
        targets = teacher.targets(view, tokens if only_visible else None)
        predicted, _ = model.student(normalize(view, model.mean, model.std), visible)
        judged = ~tokens if sites == "masked" else tokens  # [B, N]
        mine = F.cosine_similarity(predicted, targets, dim=-1)  # [B, N]
        means = F.cosine_similarity(mean_token.expand_as(targets), targets, dim=-1)
        ours.append(mine[judged])
        trivial.append(means[judged])
        gains.append(((mine - means) * judged).sum(dim=1) / judged.sum(dim=1))  # [B]
    return {
        "student": torch.cat(ours).mean().item(),
        "mean_token": torch.cat(trivial).mean().item(),
        "gain_ci95": mean_interval(torch.cat(gains).tolist()),
        "sites": sites,
        "photos": min(SAMPLE, len(splits[held_out])),
    }


def _sample(source: ImageSource) -> Iterator[Tensor]:
    """At most `SAMPLE` photos, evenly spread, in batches uint8 [B, 3, H_canvas, W_canvas]."""
    count = min(SAMPLE, len(source))
    spread = torch.linspace(0, len(source) - 1, count, dtype=torch.float64).round().long()
    for indices in spread.split(256):
        yield source.images[indices]


def _teacher_views(
    batches: Iterable[Tensor], draws: Draws, parts: Parts, recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Photos as the teacher sees them in training: views, and their visible tokens (None: all)."""
    for images in batches:
        view = center_view(images.to(draws.device), size=recipe.data.size)
        if recipe.teacher.view == "full":
            yield view, None
        else:
            yield view, _tokens(draw_visible(draws, len(view), parts, recipe.mask.ratio), parts)


def _standardize(teacher: Teacher, source: ImageSource, parts: Parts, recipe: Recipe) -> None:
    """Let the teacher take its statistics from at most 1,024 training photos of a fixed shuffle."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:1024]
    batches = (source.images[indices] for indices in order.split(128))
    device = next(teacher.parameters()).device
    draws = Draws(torch.Generator().manual_seed(recipe.seed), 0, 1, device)
    teacher.standardize(_teacher_views(batches, draws, parts, recipe))


def _save(model: Distillation, parts: Parts, source: ImageSource, run: RunDir) -> None:
    """Densify, set BatchNorm to whole photos, write the backbone and record it."""
    dense = densify(copy.deepcopy(model.student.encoder))  # the student's own is still to be judged
    recalibrate_batchnorm(EmbeddingNet(dense, parts.spec), source, parts.spec)
    spec = replace(parts.spec, bits=source.decided.get("data.bits", 0))
    save_backbone(dense, spec, run.backbone_file)
    run.add_artefact(run.backbone_file, made_from=[run.checkpoint_file])


def teacher_origin(name: str, vit: nn.Module, *, file: Path | None = None) -> dict[str, str]:
    """The licence of the teacher's weights, for the manifest; shown, with a warning where due.

    Args:
        name: timm's, which says under what licence weights are published.
        vit: The teacher.
        file: Where its weights are from, if not from the hub: then nobody knows whether they are
            the published ones.
    """
    licence = teacher_licence(vit)
    if not licence:
        return {}
    said = f"teacher: {name}, license {licence}"
    if file is not None:
        said = f"teacher: {file}; the published weights of {name} have the license {licence}"
    console.print(said, soft_wrap=True)
    if forbids_commerce(licence):
        warn(f"{licence} forbids commercial use of the teacher's weights")
    return {"licence": licence}


def _load_teacher(
    recipe: Recipe, parts: Parts, source: ImageSource, *, resume_command: str
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher with its weights, and what the manifest says of them.

    Untrained where no features are learnt: only its token grid is used.
    """
    config, vit = recipe.teacher, parts.vit
    if not recipe.loss.feature_weight:
        teacher = Teacher(vit, layers=config.layers, size=parts.teacher_size)
        return teacher, {"name": config.name, "weights": "none: loss.feature_weight is 0"}
    origin: dict[str, Any] = {"name": config.name, "weights": config.weights}
    files = {"path": config.path, "bundled": BUNDLED_TEACHER}
    if config.weights == "pretrain":
        files["pretrain"] = pretrain_teacher(
            vit, source, recipe, size=parts.teacher_size, resume_command=resume_command
        )
    file = files.get(config.weights)
    if file is not None:
        load_vit_weights(vit, file)
        origin |= {"file": str(file), "sha256": file_sha256(file)}
    if config.weights in ("hub", "path"):
        origin |= teacher_origin(config.name, vit, file=file)
    teacher = Teacher(vit, layers=config.layers, size=parts.teacher_size)
    if recipe.train.compile:  # the sparse student gathers by the mask: nothing to compile there
        teacher.compile()
    return teacher, origin
