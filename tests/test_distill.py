from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from hgkd_edge.distill import Distilling, distill
from hgkd_edge.engine import Draws
from hgkd_edge.errors import ConversionError, RecipeError
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.distillation import Distillation
from hgkd_edge.models.student import Student
from hgkd_edge.models.teacher import Teacher
from hgkd_edge.parts import build
from hgkd_edge.recipe import LossConfig, Recipe, load_recipe
from hgkd_edge.rundir import RunDir


def draws(progress: float = 0.0) -> Draws:
    return Draws(torch.Generator().manual_seed(0), 0, 1, torch.device("cpu"), progress)


def make_task(mapping: dict[str, Any]) -> Distilling:
    recipe = Recipe.model_validate(mapping)
    parts = build(recipe)
    teacher = Teacher(parts.vit, layers="last", size=parts.teacher_size)
    student = Student(
        parts.encoder,
        teacher_width=teacher.width,
        decoder_width=16,
        pixels=recipe.loss.pixel_weight > 0,
    )
    model = Distillation(student, recipe.loss, parts.spec.mean, parts.spec.std)
    return Distilling(model, teacher, parts, recipe)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.image_size=72", "does not divide.*set data.image_size to (64|80)"),
        ("mask.ratio=0.98", "leaves nothing visible"),
        ("mask.patch=24", "multiple of the student's deepest stride 16"),
        ("student.name=vit_tiny_patch16_224", "not convolutional"),
        ("student.name=resnte18", "did you mean 'resnet"),
        ("teacher.name=resnet18", "not a Vision Transformer"),
        ("data.image_size=16", "too few to match|leaves nothing visible"),
    ],
)
def test_an_impossible_combination_is_refused_before_any_photo_is_read(
    tiny_recipe_file: Path, override: str, said: str
) -> None:
    overrides = [override, "student.args={}", "teacher.args={patch_size: 16}"]
    if "teacher.name" in override:
        overrides[-1] = "teacher.args={}"

    with pytest.raises(RecipeError, match=said):
        build(load_recipe(tiny_recipe_file, [*overrides, "data.path=/nowhere"]))


@pytest.mark.parametrize("patch", [7, 8, 14, 16])
def test_the_teacher_sees_what_makes_its_grid_the_students(
    tiny_recipe: dict[str, Any], patch: int
) -> None:
    tiny_recipe["teacher"]["args"] = {"patch_size": patch, "depth": 1, "embed_dim": 48}
    tiny_recipe["data"]["image_size"] = [64, 96]

    parts = build(Recipe.model_validate(tiny_recipe))

    assert parts.teacher_size == tuple(side * patch for side in parts.token_grid)
    stride = 8 if patch < 12 else 16
    assert parts.token_grid == (64 // stride, 96 // stride)


def test_k_masks_share_one_teacher_pass(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["mask"] = {"per_image": 3}
    task = make_task(tiny_recipe)
    passes: list[int] = []
    task.teacher.register_forward_hook(lambda *_: passes.append(1))
    photos = torch.randint(0, 256, (4, 3, 73, 73), dtype=torch.uint8)

    updates = list(task.inputs(photos, torch.zeros(4), draws()))

    assert len(passes) == 1
    assert len(updates) == 3
    masks = [visible for _, visible, _ in updates]
    assert not torch.equal(masks[0], masks[1])
    assert all(updates[0][2] is targets for _, _, targets in updates)


@pytest.mark.parametrize("where", ["masked", "visible", "all"])
@pytest.mark.parametrize("target", ["smooth_l1", "mse", "cosine"])
def test_the_loss_looks_where_and_how_the_recipe_says(
    tiny_recipe: dict[str, Any], where: str, target: str
) -> None:
    tiny_recipe["loss"] = {"target": target, "where": where}
    task = make_task(tiny_recipe)
    model = task.model.eval()
    images, visible, targets = next(
        iter(task.inputs(torch.randint(0, 256, (3, 3, 73, 73)).byte(), torch.zeros(3), draws()))
    )

    loss = model(images, visible, targets)["loss"]

    from hgkd_edge.data.augment import normalize

    spec = task.parts.spec
    predicted = model.student(normalize(images, spec.mean, spec.std), visible)[0]
    tokens = upsample_mask(visible, (8, 8)).flatten(1)
    chosen = {"masked": ~tokens, "visible": tokens, "all": tokens | True}[where]
    a, b = predicted[chosen], targets[chosen]
    wanted = {
        "smooth_l1": F.smooth_l1_loss(a, b),
        "mse": (a - b).square().mean(),
        "cosine": 1 - F.cosine_similarity(a, b, dim=-1).mean(),
    }[target]
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize(
    ("size", "stem_stride"), [(32, 1), ([96, 160], 2), (224, 4), ([320, 512], 4), (512, 4)]
)
def test_a_step_is_made_at_every_size(
    tiny_recipe: dict[str, Any], size: int | list[int], stem_stride: int
) -> None:
    tiny_recipe["data"]["image_size"] = size
    tiny_recipe["student"]["stem_stride"] = stem_stride
    tiny_recipe["teacher"]["args"]["patch_size"] = 4 * stem_stride
    tiny_recipe["loss"] = {"where": "all", "pixel_weight": 1.0}
    task = make_task(tiny_recipe)
    height, width = task.parts.spec.size
    photos = torch.randint(0, 256, (2, 3, height + 8, width + 8), dtype=torch.uint8)
    ((view, visible, targets),) = task.inputs(photos, torch.zeros(2), draws())
    assert view.shape == (2, 3, height, width)
    patch = task.parts.encoder.patch
    assert visible.shape == (2, height // patch, width // patch)
    assert targets.shape[1] == task.parts.token_grid[0] * task.parts.token_grid[1]

    task.model(view, visible, targets)["loss"].backward()

    gradients = [weight.grad for weight in task.model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_pixel_term_adds_to_the_loss(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["loss"] = {"pixel_weight": 1.0}
    task = make_task(tiny_recipe)
    photos = torch.randint(0, 256, (3, 3, 73, 73)).byte()
    inputs = next(iter(task.inputs(photos, torch.zeros(3), draws())))

    with_pixels = task.model.eval()(*inputs)["loss"]
    task.model.config = LossConfig(pixel_weight=0.0)
    without = task.model(*inputs)["loss"]

    assert with_pixels > without + 0.5  # an untrained pixel head costs about 1


def test_visible_targets_come_from_visible_patches_only(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["teacher"]["view"] = "visible"
    tiny_recipe["loss"] = {"where": "visible"}
    task = make_task(tiny_recipe)

    _, visible, targets = next(
        iter(task.inputs(torch.randint(0, 256, (2, 3, 73, 73)).byte(), torch.zeros(2), draws()))
    )

    tokens = upsample_mask(visible, (8, 8)).flatten(1)
    assert torch.equal(targets.abs().sum(-1) > 0, tokens)


def test_a_run_folder_holds_all_that_the_next_commands_need(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe_file)
    run = RunDir.create(recipe, tmp_path / "run")

    result = distill(recipe, run)

    manifest = run.manifest()
    assert set(result["held_out"]) == {"student", "mean_token", "photos"}
    assert manifest["artefacts"]["backbone.safetensors"]["made_from"] == ["checkpoints/last.pt"]
    assert manifest["data"]["train"]["photos"] == 48
    assert manifest["seed"] == 0
    assert manifest["teacher"]["weights"] == "pretrain"
    assert list(run.path.rglob("events.out.tfevents*"))
    records = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 7))
    assert {"loss", "cosine", "lr", "images_per_s", "data_share"} <= records[0].keys()
    model = timm.create_model("resnet18", num_classes=0, channels=(8, 16, 24, 32))
    model.load_state_dict(load_file(run.backbone_file), strict=True)
    assert not list(run.path.rglob("*.tmp"))


def test_a_pretrained_teacher_is_made_once(
    tiny_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from hgkd_edge.data.sources import open_splits
    from hgkd_edge.pretrain import pretrain_teacher

    tiny_recipe["teacher"]["pretrain"] |= {"epochs": 3, "label_epochs": 2}
    recipe = Recipe.model_validate(tiny_recipe)
    source = open_splits(recipe.data)["train"]
    first, again = build(recipe), build(recipe)

    made = pretrain_teacher(first.vit, source, recipe, size=first.teacher_size)
    stamp = made.stat().st_mtime_ns
    found = pretrain_teacher(again.vit, source, recipe, size=again.teacher_size)

    assert found == made
    assert made.stat().st_mtime_ns == stamp
    assert [line["step"] for line in _records(made.parent / "labels.jsonl")] == [1, 2, 3, 4, 5, 6]
    other = recipe.model_copy(update={"seed": 5})
    assert pretrain_teacher(build(other).vit, source, other, size=first.teacher_size) != made


def test_a_student_that_cannot_be_sparse_is_refused_by_module_path(tiny_recipe_file: Path) -> None:
    recipe = load_recipe(tiny_recipe_file, ["student={name: mobilevit_xxs}", "data.image_size=128"])

    with pytest.raises(ConversionError, match="stages"):
        build(recipe)


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_compiled_teacher_gives_the_same_targets(tiny_recipe: dict[str, Any]) -> None:
    task, images = make_task(tiny_recipe), torch.rand(2, 3, 64, 64)
    plain = task.teacher(images)

    task.teacher.compile(backend="aot_eager")  # what `train.compile` does, with no C++ compiler

    torch.testing.assert_close(task.teacher(images), plain)


def test_with_standardised_targets_the_mean_token_predicts_nothing(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    cosines = {}
    for standardize in (False, True):
        recipe = Recipe.model_validate(
            {**tiny_recipe, "teacher": {**tiny_recipe["teacher"], "standardize": standardize}}
        )
        run = RunDir.create(recipe, tmp_path / str(standardize))
        cosines[standardize] = distill(recipe, run)["held_out"]["mean_token"]

    assert cosines[False] > 0.3
    assert abs(cosines[True]) < 0.2


def test_the_last_updates_see_whole_photos(tiny_recipe: dict[str, Any]) -> None:
    task = make_task({**tiny_recipe, "mask": {"whole_share": 0.25}, "loss": {"where": "all"}})
    images = torch.zeros(2, 3, 73, 73, dtype=torch.uint8)

    def visible_share(progress: float) -> float:
        ((_, visible, _),) = task.inputs(images, torch.zeros(2), draws(progress))
        return visible.float().mean().item()

    assert max(visible_share(progress) for progress in (0.0, 0.5, 0.74)) < 0.5
    assert min(visible_share(progress) for progress in (0.75, 0.99)) == 1


def test_without_a_whole_share_the_last_update_is_masked_too(tiny_recipe: dict[str, Any]) -> None:
    task = make_task(tiny_recipe)

    ((_, visible, _),) = task.inputs(
        torch.zeros(2, 3, 73, 73, dtype=torch.uint8), torch.zeros(2), draws(0.999)
    )

    assert not visible.all()


def test_whole_photos_need_a_loss_where_something_is_visible(tiny_recipe: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"leave nothing masked: set loss.where to 'all'"):
        Recipe.model_validate({**tiny_recipe, "mask": {"whole_share": 0.5}})
