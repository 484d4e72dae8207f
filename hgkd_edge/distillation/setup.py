"""Everything that a distillation needs, created once from a recipe and its images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hgkd_edge.console import warn
from hgkd_edge.data.augment import center_view
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distillation.license import print_license, published_license
from hgkd_edge.distillation.loss import DistillationLoss, StudentWithLoss
from hgkd_edge.distillation.parts import Parts
from hgkd_edge.distillation.pretrain import pretrain_teacher
from hgkd_edge.distillation.target_cache import TargetCache, cached_targets, require_decoded
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.teacher_weights import BUNDLED_TEACHER, load_vit_weights
from hgkd_edge.distillation.views import teacher_views
from hgkd_edge.engine import Draws
from hgkd_edge.errors import RunError
from hgkd_edge.files import file_sha256
from hgkd_edge.manifest_record import ManifestRecord, NetworkOrigin
from hgkd_edge.models.student import Student
from hgkd_edge.processes import is_main, on_main
from hgkd_edge.provenance import circumstances, report_photos
from hgkd_edge.recipe import Recipe
from hgkd_edge.recipe_sections import StudentConfig, TeacherConfig
from hgkd_edge.rundir import RunDir

__all__ = [
    "Setup",
    "load_teacher",
    "make_model",
    "make_teacher",
    "print_licenses",
    "ready_teacher",
    "set_up",
]

ALIKE = 0.2  # of `Teacher.between_images`; ordinary images give .9 or more
STATISTICS, REPEATS = 1024, 8  # views used to standardize targets; max. views per image


@dataclass(frozen=True)
class Setup:
    """Everything that a distillation needs, except the student's weights.

    Attributes:
        recipe: Fully resolved.
        parts: The two networks, and the grids that they share.
        teacher: The teacher with its weights, standardized if the recipe asks for it.
        splits: The images by split.
        cache: The teacher's targets on disk, if the recipe asks for them.
    """

    recipe: Recipe
    parts: Parts
    teacher: Teacher
    splits: dict[str, ImageSource]
    cache: TargetCache | None

    @property
    def source(self) -> ImageSource:
        """The training images."""
        return self.splits["train"]


def set_up(recipe: Recipe, run: RunDir, parts: Parts, *, resume: bool = False) -> Setup:
    """Open the images and create the teacher; the run's manifest records both.

    Args:
        recipe: Fully resolved.
        run: The run folder.
        parts: The recipe's networks.
        resume: The run continues: its teacher must be the same.

    Raises:
        RunError: The run began with other weights of the teacher.
    """
    begun = on_main(run.manifest) if resume else ManifestRecord()
    print_licenses(recipe, parts)
    splits = open_splits(recipe.data)
    report_photos(splits)
    source = splits["train"]
    require_decoded(source, recipe)  # pre-training may take hours
    if is_main():
        run.update_manifest(
            circumstances(seed=recipe.seed, precision=recipe.train.precision, splits=splits)
        )
    origin = load_teacher(recipe, parts, source, resume_command=run.resume_command)
    _require_same_teacher(begun, origin, run)
    if is_main():
        student = _student_origin(recipe, parts)
        run.update_manifest(ManifestRecord(teacher=origin, student=student))
    teacher = ready_teacher(recipe, parts, source)
    cache = cached_targets(teacher, source, recipe) if recipe.teacher.cache else None
    if cache is not None:
        teacher.cpu()  # until the student is evaluated
    return Setup(recipe, parts, teacher, splits, cache)


def _require_same_teacher(begun: ManifestRecord, origin: NetworkOrigin, run: RunDir) -> None:
    known = begun.teacher.sha256 if begun.teacher else None
    if known is not None and known != origin.sha256:
        raise RunError(
            f"run '{run.path}' began with other weights of the teacher than {origin.file} has",
            hint="restore the file, or start a new run",
        )


def ready_teacher(recipe: Recipe, parts: Parts, source: ImageSource) -> Teacher:
    """The teacher with the weights in `parts`, on its device, standardized if asked for."""
    teacher = make_teacher(recipe, parts)
    if recipe.train.compile and recipe.loss.feature_weight:
        teacher.compile()  # the sparse student is not compiled: it gathers by mask
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.teacher.standardize and recipe.loss.feature_weight:
        standardize(teacher, source, parts, recipe)
    return teacher


def make_teacher(recipe: Recipe, parts: Parts) -> Teacher:
    """The teacher that produces the targets of a recipe's loss, with the weights in `parts`."""
    return Teacher(
        parts.vit,
        layers=recipe.teacher.layers,
        size=parts.teacher_size,
        embedding=recipe.loss.embedding_weight > 0,
    )


def make_model(recipe: Recipe, parts: Parts, teacher: Teacher) -> StudentWithLoss:
    """The student that predicts a teacher's targets, and its loss."""
    student = Student(
        parts.encoder,
        teacher_width=teacher.width,
        decoder_width=recipe.student.decoder_width,
        head=recipe.student.head,
        pixels=recipe.loss.pixel_weight > 0,
        embedding=recipe.loss.embedding_weight > 0,
    )
    loss = DistillationLoss(**recipe.loss.model_dump())
    return StudentWithLoss(student, loss, mean=parts.spec.mean, std=parts.spec.std)


def standardize(teacher: Teacher, source: ImageSource, parts: Parts, recipe: Recipe) -> None:
    """Let the teacher compute its statistics on training views of at most `STATISTICS` images.

    If there are fewer images, each gives several views. The views depend only on the seed.
    """
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:STATISTICS]
    repeats = min(REPEATS, math.ceil(STATISTICS / len(order)))
    batches = (source.images[indices] for indices in order.repeat(repeats).split(128))
    device = next(teacher.parameters()).device
    draws = Draws.same_each_time(recipe.seed, device)
    few = source.images[order[:128]].to(device)
    varied = teacher.between_images([(center_view(few, size=recipe.data.size), None)])
    teacher.standardize(teacher_views(batches, draws, parts, recipe))
    if varied < ALIKE:
        warn(
            f"the training images hardly differ: only {100 * varied:.0f} % of the spread of their "
            "tokens is between images; see 'A camera that never moves' in docs/training.md"
        )


def load_teacher(
    recipe: Recipe, parts: Parts, source: ImageSource, *, resume_command: str
) -> NetworkOrigin:
    """Load the teacher's weights; returns their manifest entry.

    Stays untrained if no features are learned: only its token grid is used.
    """
    config, vit = recipe.teacher, parts.vit
    if not recipe.loss.feature_weight:
        return NetworkOrigin(name=config.name, weights="none: loss.feature_weight is 0")
    files = {"path": config.path, "bundled": BUNDLED_TEACHER}
    if config.weights == "pretrain":
        files["pretrain"] = pretrain_teacher(
            vit, source, recipe, size=parts.teacher_size, resume_command=resume_command
        )
    file = files.get(config.weights)
    if file is not None:
        load_vit_weights(vit, file)
    return _origin(config, file, _teacher_license(recipe, parts))


def _student_origin(recipe: Recipe, parts: Parts) -> NetworkOrigin:
    """The manifest entry for the student's initial weights."""
    return _origin(recipe.student, recipe.student.path, _student_license(recipe, parts))


def _origin(
    config: TeacherConfig | StudentConfig, file: Path | None, license: str
) -> NetworkOrigin:
    origin = NetworkOrigin(name=config.name, weights=config.weights)
    if file is not None:
        origin.file, origin.sha256 = str(file), file_sha256(file)
    if license:
        origin.license = license
    return origin


def print_licenses(recipe: Recipe, parts: Parts) -> None:
    """Print both licenses first: reading the images can take long."""
    teacher, student = recipe.teacher, recipe.student
    license = _teacher_license(recipe, parts)
    print_license(teacher.name, license, role="teacher", file=teacher.path)
    license = _student_license(recipe, parts)
    print_license(student.name, license, role="student", file=student.path)


def _teacher_license(recipe: Recipe, parts: Parts) -> str:
    """'' for weights that hgkd-edge trained, or that no loss uses."""
    published = recipe.loss.feature_weight and recipe.teacher.weights in ("hub", "path")
    return published_license(parts.vit) if published else ""


def _student_license(recipe: Recipe, parts: Parts) -> str:
    untrained = recipe.student.weights == "none"
    return "" if untrained else published_license(parts.encoder.network)
