"""Distillation: photos and a frozen Transformer in, a run folder with a dense CNN out.

H-GKD (Heterogeneous Generative Knowledge Distillation with Masked Image Modeling, arXiv
2309.09571): the student sees the visible patches by sparse convolution and predicts, over the whole
image, what the teacher infers from it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.confidence import mean_interval, wilson
from hgkd_edge.console import console, warn
from hgkd_edge.data.augment import Augmentation, center_view, mix, normalize
from hgkd_edge.data.masks import disjoint_masks, random_masks, visible_count
from hgkd_edge.data.sources import ImageSource, held_out_split, open_splits
from hgkd_edge.data.transfer import to_device
from hgkd_edge.engine import Draws, Inputs, Workplace, train
from hgkd_edge.engine.journal import rate_in
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
from hgkd_edge.probe import BetweenImages, embed, knn_top1
from hgkd_edge.processes import from_all, is_main
from hgkd_edge.provenance import circumstances, record_met, report_photos
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir, file_sha256
from hgkd_edge.sparse import densify
from hgkd_edge.target_cache import TargetCache, cached_targets

__all__ = [
    "Distilling",
    "check",
    "distill",
    "held_out_cosine",
    "make_model",
    "make_teacher",
    "teacher_origin",
]

ALIKE = 0.2  # of `Teacher.between_images`; ordinary photos give .9 and more
STATISTICS, REPEATS = 1024, 8  # views that targets are standardized by; how many of one photo
SAMPLE = 4096  # photos of a split that are enough to judge a prediction by


class Distilling:
    """Task: predict the teacher's tokens; K masks of an image share one teacher pass."""

    layer_decay: float | None = None

    def __init__(
        self,
        model: Distillation,
        teacher: Teacher,
        parts: Parts,
        recipe: Recipe,
        cache: TargetCache | None = None,
    ) -> None:
        self.model: nn.Module = model
        self.cache = cache
        self.teacher, self.parts, self.recipe = teacher, parts, recipe
        self.updates_per_batch = recipe.mask.per_image
        self.capturable = recipe.student.backend != "spconv"  # which counts its sites on the host

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        parts, augmentation = self.parts, Augmentation.of(self.recipe)
        ratio = self.recipe.mask.ratio_at(draws.progress)
        shared: Tensor | None
        if self.cache is not None:
            chosen = draws.on_cpu(len(images), 1)[:, 0]
            drawn, rows = self.cache.views(draws.photos, chosen)
            view = augmentation.view(images, drawn)
            shared = to_device(rows, images.device).float()
        else:
            view = _random_views(images, draws, self.recipe)
            shared = self._shared_targets(view)
        per_image = visible_patches(parts, ratio)
        for visible in self._masks(draws, len(view), ratio):
            targets = shared
            if targets is None:
                tokens = _tokens(visible, parts)
                seen = per_image * tokens[0].numel() // visible[0].numel()
                targets = self.teacher.targets(view, tokens, seen)
            yield view, visible, targets, per_image

    def _masks(self, draws: Draws, count: int, ratio: float) -> Iterator[Tensor]:
        """The masks of `count` images, one for every update of the batch, bool [B, h, w] each."""
        updates = range(self.updates_per_batch)
        if not self.recipe.mask.disjoint:
            yield from (draw_visible(draws, count, self.parts, ratio) for _ in updates)
            return
        grid = self.parts.mask_grid
        noise = (draws.uniform(count, grid[0] * grid[1]) for _ in updates)
        yield from (_on_patches(mask, self.parts) for mask in disjoint_masks(noise, grid, ratio))

    def _shared_targets(self, view: Tensor) -> Tensor | None:
        """Targets that no mask changes, [B, N, D]; None where every mask has its own."""
        if not self.recipe.loss.feature_weight:
            return view.new_zeros(len(view), 1)  # nothing looks at them: the teacher rests
        return self.teacher(view) if self.recipe.teacher.view == "full" else None


def _random_views(images: Tensor, draws: Draws, recipe: Recipe) -> Tensor:
    """Training views float32 [B, 3, H, W] of canvases uint8 [B, 3, H_canvas, W_canvas]."""
    augmentation = Augmentation.of(recipe)
    view = augmentation.view(images, draws.on_cpu(len(images), augmentation.draws))
    return mix(view, draws.uniform(len(view), 1)) if recipe.augment.mixup else view


def draw_visible(draws: Draws, count: int, parts: Parts, ratio: float) -> Tensor:
    """Masks for `count` images on the grid of the student's deepest stride, bool [B, h, w]."""
    grid = parts.mask_grid
    return _on_patches(random_masks(draws.uniform(count, grid[0] * grid[1]), grid, ratio), parts)


def _on_patches(masks: Tensor, parts: Parts) -> Tensor:
    """Masks on the mask grid, on the grid of the student's deepest stride: bool [B, h, w]."""
    return upsample_mask(masks, [side // parts.encoder.patch for side in parts.spec.size])


def visible_patches(parts: Parts, ratio: float) -> int:
    """How many of an image's patches a mask of `draw_visible` shows, the same for every image."""
    rows, columns = (side // parts.encoder.patch for side in parts.spec.size)
    h, w = parts.mask_grid
    return visible_count((h, w), ratio) * (rows // h) * (columns // w)


def _tokens(visible: Tensor, parts: Parts) -> Tensor:
    """Masks bool [B, h, w] on the teacher's tokens: bool [B, N]."""
    return upsample_mask(visible, parts.token_grid).flatten(1)


def distill(
    recipe: Recipe,
    run: RunDir,
    *,
    parts: Parts | None = None,
    resume: bool = False,
    until: int | None = None,
) -> dict[str, Any]:
    """Run a whole distillation into a run folder, or its first updates to check it.

    Args:
        recipe: Fully resolved.
        run: Its folder; the same one to resume.
        parts: The recipe's networks, where they are built already.
        resume: Go on from the folder's checkpoint.
        until: Stop after so many updates, with a checkpoint, and report how it goes: nothing else
            is written.

    Returns:
        What `check` reports, `images_per_s` and the `hours` of the whole run at that rate; or what
        the manifest says of the result: steps, held-out cosine, skipped photos, artefacts.
        Nothing on processes next to the main one, whose part ends with the training.
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
        run.update_manifest(teacher=weights, student=_student_origin(recipe, parts))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.teacher.standardize and recipe.loss.feature_weight:
        _standardize(teacher.to(device), source, parts, recipe)
    torch.manual_seed(recipe.seed)  # the decoder starts the same, teacher pre-trained now or before
    model = make_model(recipe, parts, teacher)
    cache = None
    if recipe.teacher.cache:
        cache = cached_targets(teacher.to(device), source, recipe)
        teacher.cpu()  # until the student is judged
    else:
        teacher.to(device)
    task = Distilling(model, teacher, parts, recipe, cache)
    place = Workplace(
        log_file=run.log_file,
        checkpoint_file=run.checkpoint_file,
        tracker_dir=run.path,
        resume_command=run.resume_command,
    )
    trained = train(
        task,
        source,
        recipe.train,
        seed=recipe.seed,
        place=place,
        label="distilling",
        resume=resume,
        until=until,
    )
    assert isinstance(trained, Distillation)
    met = from_all({"skipped": source.skipped, "noted": source.noted})
    if not is_main():
        return {}
    record_met(run, met)
    teacher.to(device)
    if until is not None:
        rate = rate_in(run.log_file)
        hours = recipe.train.epochs * len(source) / rate / 3600
        pace = {"images_per_s": rate, "hours": hours}  # of the whole run
        return {**check(trained, teacher, parts, splits, recipe), **pace}
    _save(trained, parts, source, run)
    held_out = _held_out_if_readable(trained, teacher, parts, splits, recipe)
    result: dict[str, Any] = {"held_out": held_out}
    if line := _not_better_than_the_mean(held_out):
        result["warnings"] = [line]
    run.update_manifest(result=result)
    return result


def make_teacher(recipe: Recipe, parts: Parts) -> Teacher:
    """The teacher that gives the targets of a recipe's loss, with the weights that `parts` has."""
    return Teacher(
        parts.vit,
        layers=recipe.teacher.layers,
        size=parts.teacher_size,
        combine=recipe.teacher.combine,
        embedding=recipe.loss.embedding_weight > 0,
    )


def make_model(recipe: Recipe, parts: Parts, teacher: Teacher) -> Distillation:
    """The student that predicts a teacher's targets, with its loss."""
    student = Student(
        parts.encoder,
        teacher_width=teacher.width,
        decoder_width=recipe.student.decoder_width,
        head=recipe.student.head,
        pixels=recipe.loss.pixel_weight > 0,
        embedding=recipe.loss.embedding_weight > 0,
    )
    return Distillation(student, recipe.loss, parts.spec.mean, parts.spec.std)


def check(
    model: Distillation,
    teacher: Teacher,
    parts: Parts,
    splits: dict[str, ImageSource],
    recipe: Recipe,
) -> dict[str, Any]:
    """Whether a distillation works so far.

    Returns:
        `held_out` as `held_out_cosine`; where the images are labelled `knn` and `knn_before` top-1
        of the student and of the student that it started from, and the interval `knn_ci95`;
        `signs`: one line per sign that it works, `doubts`: one per sign that it does not.
    """
    result: dict[str, Any] = {
        "held_out": _held_out_if_readable(model, teacher, parts, splits, recipe)
    }
    signs: list[str] = []
    doubts: list[str] = []
    if held := result["held_out"]:
        low, high = held["gain_ci95"]
        line = (
            f"predicts teacher features of {held['photos']} held-out images with cosine "
            f"{held['student']:.3f}, the mean token with {held['mean_token']:.3f} (difference "
            f"{low:.3f} to {high:.3f}); what differs between images with correlation "
            f"{held['between_images']:.2f}"
        )
        (signs if low > 0 else doubts).append(line)
    name = held_out_split(splits, labelled=True)
    if name is not None and splits["train"].labelled:
        before = build(recipe.model_copy()).encoder.network
        knn, start = (_knn(net, parts, splits, name) for net in (_dense(model), before))
        count = len(splits[name])
        low, high = wilson(knn, count)
        result |= {"knn": knn, "knn_before": start, "knn_ci95": (low, high), "split": name}
        line = (
            f"k-NN top-1 {100 * knn:.1f} % on {count} {name} images (95 % interval {100 * low:.1f} "
            f"to {100 * high:.1f} %), {100 * start:.1f} % before distillation"
        )
        (signs if low > start else doubts).append(line)
    return {**result, "signs": signs, "doubts": doubts}


def _dense(model: Distillation) -> nn.Module:
    """A dense copy of the student; its own is still to be trained or judged."""
    return densify(copy.deepcopy(model.student.encoder))


def _knn(features: nn.Module, parts: Parts, splits: dict[str, ImageSource], name: str) -> float:
    train_split, test = splits["train"], splits[name]
    network = EmbeddingNet(features, parts.spec)
    recalibrate_batchnorm(network, train_split, parts.spec)
    network.eval()
    return knn_top1(
        embed(network, train_split),
        train_split.labels,
        embed(network, test),
        test.labels,
        classes=len(train_split.classes),
    )


def _student_origin(recipe: Recipe, parts: Parts) -> dict[str, Any]:
    """What the manifest says of the weights that the student starts from."""
    config = recipe.student
    origin: dict[str, Any] = {"name": config.name, "weights": config.weights}
    if config.path is not None:
        origin |= {"file": str(config.path), "sha256": file_sha256(config.path)}
    if config.weights != "none":
        network = parts.encoder.network
        origin |= teacher_origin(config.name, network, file=config.path, role="student")
    return origin


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
    masks none. Masks have the recipe's highest ratio. The trivial predictor that it is compared
    with knows the training images' mean token of each place.

    Returns:
        `student` and `mean_token` cosine, `gain_ci95` (the 95 % interval of their difference, over
        photos), `between_images` (see `BetweenImages`), `sites` (masked, visible or all) and
        `photos`; empty when nothing was held out, or no features were learnt.

    Raises:
        DataError: Photos that were to be decoded now cannot be read.
    """
    held_out = held_out_split(splits)
    if held_out is None or not recipe.loss.feature_weight:
        return {}
    model.eval()
    device = next(model.parameters()).device
    draws = Draws(torch.Generator().manual_seed(recipe.seed), 0, 1, device)
    means, _ = teacher.moments(_teacher_views(_sample(splits["train"]), draws, parts, recipe))
    places = parts.token_grid[0] * parts.token_grid[1]  # without the row of the whole image
    mean_token = means[:places]  # [N, D]
    only_visible = recipe.teacher.view == "visible"
    ratio = recipe.mask.highest_ratio
    sites = "visible" if only_visible else "masked" if ratio else "all"
    ours, trivial, gains, between = [], [], [], BetweenImages()
    for images in _sample(splits[held_out]):
        view = center_view(images.to(device), size=recipe.data.size)
        visible = draw_visible(draws, len(view), parts, ratio)
        tokens = _tokens(visible, parts)
        targets = teacher.targets(view, tokens if only_visible else None)[:, :places]
        predicted = model.student(normalize(view, model.mean, model.std), visible)[0]
        judged = ~tokens if sites == "masked" else tokens  # [B, N]
        mine = F.cosine_similarity(predicted, targets, dim=-1)  # [B, N]
        means = F.cosine_similarity(mean_token.expand_as(targets), targets, dim=-1)
        between.add(predicted, targets, judged)
        ours.append(mine[judged])
        trivial.append(means[judged])
        gains.append(((mine - means) * judged).sum(dim=1) / judged.sum(dim=1))  # [B]
    return {
        "student": torch.cat(ours).mean().item(),
        "mean_token": torch.cat(trivial).mean().item(),
        "gain_ci95": mean_interval(torch.cat(gains).tolist()),
        "between_images": between.correlation(),
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
        view = _random_views(images.to(draws.device), draws, recipe)
        if recipe.teacher.view == "full":
            yield view, None
        else:
            visible = draw_visible(draws, len(view), parts, recipe.mask.highest_ratio)
            yield view, _tokens(visible, parts)


def _standardize(teacher: Teacher, source: ImageSource, parts: Parts, recipe: Recipe) -> None:
    """Let the teacher take its statistics from training views of at most `STATISTICS` photos.

    Of photos that are fewer, several views each. What they are depends on the seed alone.
    """
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:STATISTICS]
    repeats = min(REPEATS, math.ceil(STATISTICS / len(order)))
    batches = (source.images[indices] for indices in order.repeat(repeats).split(128))
    device = next(teacher.parameters()).device
    draws = Draws(torch.Generator().manual_seed(recipe.seed), 0, 1, device)
    few = source.images[order[:128]].to(device)
    varied = teacher.between_images([(center_view(few, size=recipe.data.size), None)])
    teacher.standardize(_teacher_views(batches, draws, parts, recipe))
    if varied < ALIKE:
        warn(
            f"the training images hardly differ: of the spread of the teacher's tokens "
            f"{100 * varied:.0f} % is between images; a student can learn little but that scene"
        )


def _save(model: Distillation, parts: Parts, source: ImageSource, run: RunDir) -> None:
    """Densify, set BatchNorm to whole photos, write the backbone and record it."""
    dense = _dense(model)
    recalibrate_batchnorm(EmbeddingNet(dense, parts.spec), source, parts.spec)
    spec = replace(parts.spec, bits=source.decided.get("data.bits", 0))
    save_backbone(dense, spec, run.backbone_file)
    run.add_artefact(run.backbone_file, made_from=[run.checkpoint_file])


def teacher_origin(
    name: str, vit: nn.Module, *, file: Path | None = None, role: str = "teacher"
) -> dict[str, str]:
    """The license of a network's weights, for the manifest; shown, with a warning where due.

    Args:
        name: timm's, which says under what license weights are published.
        vit: The network.
        file: Where its weights are from, if not from the hub: then nobody knows whether they are
            the published ones.
        role: What it is here, `teacher` or `student`.
    """
    licence = teacher_licence(vit)
    if not licence:
        return {}
    said = f"{role}: {name}, license {licence}"
    if file is not None:
        said = f"{role}: {file}; the published weights of {name} have the license {licence}"
    console.print(said, soft_wrap=True)
    if forbids_commerce(licence):
        warn(f"{licence} forbids commercial use of the {role}'s weights")
    return {"licence": licence}


def _load_teacher(
    recipe: Recipe, parts: Parts, source: ImageSource, *, resume_command: str
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher with its weights, and what the manifest says of them.

    Untrained where no features are learnt: only its token grid is used.
    """
    config, vit = recipe.teacher, parts.vit
    if not recipe.loss.feature_weight:
        teacher = make_teacher(recipe, parts)
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
    teacher = make_teacher(recipe, parts)
    if recipe.train.compile:  # the sparse student gathers by the mask: nothing to compile there
        teacher.compile()
    return teacher, origin
