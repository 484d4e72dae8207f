from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from typer.testing import CliRunner

import hgkd_edge
from hgkd_edge.api.distilling import checked_lines
from hgkd_edge.cli import app
from hgkd_edge.data.augment import normalize, random_view
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation import parts, pretrain
from hgkd_edge.distillation.distill import distill, first_updates
from hgkd_edge.distillation.held_out import (
    held_out_cosine,
    judged_sites,
    not_better_than_the_mean,
)
from hgkd_edge.distillation.loss import DistillationLoss
from hgkd_edge.distillation.masks import random_masks
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.setup import Setup, make_model, make_teacher, standardize
from hgkd_edge.distillation.teacher_weights import BUNDLED_TEACHER, load_vit_weights
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Draws, setup
from hgkd_edge.errors import Interrupted, RunError, TrainingError
from hgkd_edge.files import file_sha256
from hgkd_edge.manifest_record import HeldOut
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.student import Prediction
from hgkd_edge.recipe import Recipe, load_recipe
from hgkd_edge.rundir import RunDir
from tests.conftest import NARROW, extract_photos


def draws(progress: float = 0.0) -> Draws:
    return Draws(torch.Generator().manual_seed(0), 0, 1, torch.device("cpu"), progress)


def make_task(mapping: dict[str, Any]) -> Distilling:
    recipe = Recipe.model_validate(mapping)
    parts = build(recipe)
    teacher = make_teacher(recipe, parts)
    return Distilling(make_model(recipe, parts, teacher), teacher, parts, recipe)


def test_k_masks_share_one_teacher_pass(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["mask"] = {"per_image": 3}
    task = make_task(tiny_recipe)
    passes: list[int] = []
    task.teacher.register_forward_hook(lambda *_: passes.append(1))
    photos = torch.randint(0, 256, (4, 3, 73, 73), dtype=torch.uint8)

    updates = list(task.inputs(photos, torch.zeros(4), draws()))

    assert len(passes) == 1
    assert len(updates) == 3
    masks = [visible for _, visible, *_ in updates]
    assert not torch.equal(masks[0], masks[1])
    assert all(updates[0][2] is targets for _, _, targets, _ in updates)


@pytest.mark.parametrize("where", ["masked", "visible", "all"])
@pytest.mark.parametrize("target", ["smooth_l1", "mse", "cosine"])
def test_the_loss_looks_where_and_how_the_recipe_says(
    tiny_recipe: dict[str, Any], where: str, target: str
) -> None:
    tiny_recipe["loss"] = {"target": target, "where": where}
    task = make_task(tiny_recipe)
    model = task.model.eval()
    images, visible, targets, _ = next(
        iter(task.inputs(torch.randint(0, 256, (3, 3, 73, 73)).byte(), torch.zeros(3), draws()))
    )

    loss = model(images, visible, targets)["loss"]

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


@pytest.mark.parametrize("where", ["masked", "all"])
def test_weighed_sites_count_by_the_mean_square_of_their_target(where: str) -> None:
    predicted, targets = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    targets[:, 1] *= 5
    visible = torch.tensor([[True, False, True, False]] * 2)
    weighed = DistillationLoss(target="mse", where=where, weigh_sites=True)

    loss = weighed(Prediction(predicted, None, None), targets, torch.zeros(2, 3, 8, 8), visible)

    chosen = ~visible if where == "masked" else visible | True
    weights = targets.square().mean(dim=-1)[chosen]
    distances = (predicted - targets).square().mean(dim=-1)[chosen]
    torch.testing.assert_close(loss["loss"], (weights * distances).sum() / weights.sum())


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
    ((view, visible, targets, _),) = task.inputs(photos, torch.zeros(2), draws())
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
    task.model.loss = DistillationLoss(pixel_weight=0.0)
    without = task.model(*inputs)["loss"]

    assert with_pixels > without + 0.5  # an untrained pixel head costs about 1


def test_where_only_pixels_are_learned_the_teacher_rests(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["loss"] = {"feature_weight": 0.0, "pixel_weight": 1.0}
    tiny_recipe["teacher"] |= {"weights": "bundled", "args": {"depth": 1}}  # would not fit
    task = make_task(tiny_recipe)
    task.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
    photos = torch.randint(0, 256, (3, 3, 73, 73)).byte()

    task.model(*next(task.inputs(photos, torch.zeros(3), draws())))["loss"].backward()
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")
    result = distill(recipe, run)

    # Several processes would wait for a weight that gets no gradient.
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)
    assert result.held_out is None
    assert run.manifest().teacher.weights.startswith("none")


def test_visible_targets_come_from_visible_patches_only(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["teacher"]["view"] = "visible"
    tiny_recipe["loss"] = {"where": "visible"}
    task = make_task(tiny_recipe)

    _, visible, targets, _ = next(
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
    assert result.to_dict()["held_out"].keys() == {
        "student",
        "mean_token",
        "gain_ci95",
        "between_images",
        "photos",
        "sites",
    }
    assert manifest.artifacts["backbone.safetensors"].made_from == ["checkpoints/last.pt"]
    assert manifest.data["train"].photos == 48
    assert manifest.seed == 0
    assert manifest.teacher.weights == "pretrain"
    assert manifest.teacher.sha256 == file_sha256(Path(manifest.teacher.file))
    assert list(run.path.glob("tensorboard/events.out.tfevents*"))
    records = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 7))
    assert {"loss", "cosine", "lr", "images_per_s", "data_share"} <= records[0].keys()
    model = timm.create_model("resnet18", num_classes=0, **NARROW)
    model.load_state_dict(load_file(run.backbone_file), strict=True)
    panels = sorted(file.name for file in run.previews_dir.glob("0-*.webp"))
    assert panels == [
        f"0-{name}.webp" for name in ("cosine", "image", "student", "teacher", "visible")
    ]
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.usefixtures("made_again")
@pytest.mark.parametrize("command", ["new", "resumed"])
def test_the_command_builds_both_networks_once(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    folder, built = tmp_path / "run", []
    sparsify = parts.sparsify
    arguments = ["distill", str(tiny_recipe_file), "--run", str(folder)]
    if command == "resumed":
        RunDir.create(load_recipe(tiny_recipe_file), folder)
        monkeypatch.setattr(RunDir, "require_resumable", lambda run: None)
        arguments.append("--resume")

    def counted(*of: Any, **options: Any) -> Any:
        built.append(sparsify(*of, **options))
        return built[-1]

    def trained(task: Distilling, *of: Any, **options: Any) -> None:
        built.append(task.parts.encoder)
        raise TrainingError("far enough")

    monkeypatch.setattr(parts, "sparsify", counted)
    monkeypatch.setattr("hgkd_edge.distillation.distill.train", trained)

    CliRunner().invoke(app, arguments)

    made, used = built
    assert made is used


def test_a_pretrained_teacher_is_made_once(
    tiny_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tiny_recipe["teacher"]["pretrain"] |= {"epochs": 3, "label_epochs": 2}
    recipe = Recipe.model_validate(tiny_recipe)
    source = open_splits(recipe.data)["train"]
    first, again = build(recipe), build(recipe)

    made = pretrain.pretrain_teacher(first.vit, source, recipe, size=first.teacher_size)
    stamp = made.stat().st_mtime_ns
    found = pretrain.pretrain_teacher(again.vit, source, recipe, size=again.teacher_size)

    assert found == made
    assert made.stat().st_mtime_ns == stamp
    assert [line["step"] for line in _records(made.parent / "labels.jsonl")] == [1, 2, 3, 4, 5, 6]
    other = recipe.model_copy(update={"seed": 5})
    assert (
        pretrain.pretrain_teacher(build(other).vit, source, other, size=first.teacher_size) != made
    )


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_compiled_teacher_gives_the_same_targets(tiny_recipe: dict[str, Any]) -> None:
    task, images = make_task(tiny_recipe), torch.rand(2, 3, 64, 64)
    plain = task.teacher(images)

    task.teacher.compile(backend="aot_eager")  # what `train.compile` does, with no C++ compiler

    torch.testing.assert_close(task.teacher(images), plain)


def test_with_standardized_targets_the_mean_token_predicts_nothing(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    cosines = {}
    for wanted in (False, True):
        recipe = Recipe.model_validate(
            {**tiny_recipe, "teacher": {**tiny_recipe["teacher"], "standardize": wanted}}
        )
        run = RunDir.create(recipe, tmp_path / str(wanted))
        cosines[wanted] = distill(recipe, run).held_out.mean_token

    assert cosines[False] > 0.25
    assert abs(cosines[True]) < 0.2


def test_the_last_updates_see_whole_images(tiny_recipe: dict[str, Any]) -> None:
    task = make_task({**tiny_recipe, "mask": {"whole_share": 0.25}, "loss": {"where": "all"}})
    images = torch.zeros(2, 3, 73, 73, dtype=torch.uint8)

    def visible_share(progress: float) -> float:
        ((_, visible, *_),) = task.inputs(images, torch.zeros(2), draws(progress))
        return visible.float().mean().item()

    assert max(visible_share(progress) for progress in (0.0, 0.5, 0.74)) < 0.5
    assert min(visible_share(progress) for progress in (0.75, 0.99)) == 1


def test_without_a_whole_share_the_last_update_is_masked_too(tiny_recipe: dict[str, Any]) -> None:
    task = make_task(tiny_recipe)

    ((_, visible, *_),) = task.inputs(
        torch.zeros(2, 3, 73, 73, dtype=torch.uint8), torch.zeros(2), draws(0.999)
    )

    assert not visible.all()


def test_every_stage_of_the_ratio_shows_its_share_of_the_patches(
    tiny_recipe: dict[str, Any],
) -> None:
    task = make_task({**tiny_recipe, "mask": {"ratio": {0: 0.75, 0.4: 0.5, 0.8: 0}}})
    images = torch.zeros(2, 3, 73, 73, dtype=torch.uint8)

    seen = {}
    for progress in (0.0, 0.39, 0.4, 0.79, 0.8, 0.99):
        ((_, visible, _, per_image),) = task.inputs(images, torch.zeros(2), draws(progress))
        assert (visible.flatten(1).sum(1) == per_image).all()
        seen[progress] = per_image

    assert seen == {0.0: 4, 0.39: 4, 0.4: 8, 0.79: 8, 0.8: 16, 0.99: 16}


@pytest.mark.parametrize(
    "mask", [{"whole_share": 0.5}, {"ratio": 0}, {"ratio": {0: 0.75, 0.8: 0}}, {"ratio": {0: 0}}]
)
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"where": "masked"}, "leave nothing masked: set loss.where to 'all'"),
        ({"feature_weight": 0, "pixel_weight": 1}, "no masked pixels to learn"),
    ],
)
def test_whole_images_need_a_loss_where_something_is_visible(
    tiny_recipe: dict[str, Any], mask: dict[str, Any], loss: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        Recipe.model_validate({**tiny_recipe, "mask": mask, "loss": loss})


def test_held_out_images_that_cannot_be_read_cost_their_score_and_not_the_backbone(
    photos: Path, tiny_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos / "train", tmp_path / "photos" / "train")
    (tmp_path / "photos" / "test").mkdir()
    (tmp_path / "photos" / "test" / "broken.jpg").write_bytes(b"no picture")
    tiny_recipe["data"] |= {"path": str(tmp_path / "photos"), "decode": "streaming"}
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")

    result = distill(recipe, run)

    assert run.backbone_file.is_file()
    assert run.manifest().result == result
    assert result.to_dict() == {"held_out": {}}
    expected = capsys.readouterr().err.replace("\n", " ")
    assert "warning: no held-out score" in expected
    assert "broken.jpg" in expected


@pytest.fixture
def unmoving(photos: Path, tmp_path: Path) -> Path:
    """A folder of 24 frames of one scene: nothing but noise differs."""
    scene = np.asarray(Image.open(next((photos / "train").rglob("*.webp"))).convert("RGB"))
    for number in range(24):
        noise = np.random.default_rng(number).normal(0, 2, scene.shape)
        file = tmp_path / "frames" / ("train" if number < 16 else "test") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((scene + noise).clip(0, 255).astype(np.uint8)).save(file)
    return tmp_path / "frames"


@pytest.mark.parametrize("crops", [[0.67, 1.0], [1.0, 1.0]], ids=["crops", "flips only"])
def test_targets_of_a_camera_that_never_moves_have_the_spread_of_its_training_views(
    tiny_recipe: dict[str, Any],
    unmoving: Path,
    capsys: pytest.CaptureFixture[str],
    crops: list[float],
) -> None:
    tiny_recipe["data"] |= {"path": str(unmoving), "crop_scale": crops}
    tiny_recipe["teacher"] |= {"weights": "bundled", "args": {"patch_size": 8, "depth": 6}}
    task = make_task(tiny_recipe)
    load_vit_weights(task.teacher.vit, BUNDLED_TEACHER)
    source = open_splits(task.recipe.data)["train"]

    standardize(task.teacher, source, task.parts, task.recipe)

    ((_, _, targets, _),) = task.inputs(source.images[torch.arange(16)], torch.zeros(16), draws())
    assert 0.5 < targets.square().mean().sqrt() < 1.5
    assert targets.mean(dim=(0, 1)).abs().mean() < 0.3, "crops add no offset"
    assert "the training images hardly differ" in capsys.readouterr().err


def visible_task(mapping: dict[str, Any]) -> Distilling:
    mapping["teacher"] |= {"view": "visible", "weights": "bundled"}
    mapping["teacher"]["args"] = {"patch_size": 8, "depth": 6}
    mapping["loss"] = {"where": "visible"}
    return make_task(mapping)


def test_targets_from_visible_patches_are_standardized_by_such_targets(
    tiny_recipe: dict[str, Any],
) -> None:
    task = visible_task(tiny_recipe)
    load_vit_weights(task.teacher.vit, BUNDLED_TEACHER)
    source = open_splits(task.recipe.data)["train"]

    standardize(task.teacher, source, task.parts, task.recipe)

    tokens = []
    for seed in range(8):
        noise = torch.rand(48, 16, generator=torch.Generator().manual_seed(seed))
        visible = upsample_mask(random_masks(noise, (4, 4), 0.6), (8, 8)).flatten(1)
        views = torch.rand(48, 5, generator=torch.Generator().manual_seed(100 + seed))
        images = random_view(
            source.images[torch.arange(48)], views, size=(64, 64), scale=(0.67, 1), flip=True
        )
        tokens.append(task.teacher.forward_visible(images, visible)[visible])
    assert torch.cat(tokens).mean(dim=0).abs().mean() < 0.05


def test_a_student_of_visible_patches_is_judged_on_those(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = visible_task(tiny_recipe)
    views: list[torch.Tensor] = []
    monkeypatch.setattr(
        "hgkd_edge.distillation.held_out.normalize", lambda view, *_: (views.append(view), view)[1]
    )

    class Knows(torch.nn.Module):
        """Predicts the teacher's features of the visible patches."""

        def forward(self, view: torch.Tensor, visible: torch.Tensor) -> Prediction:
            tokens = upsample_mask(visible, (8, 8)).flatten(1)
            return Prediction(task.teacher.forward_visible(view, tokens))

    task.model.student = Knows()
    task.model.register_parameter("anything", torch.nn.Parameter(torch.zeros(1)))
    splits = open_splits(task.recipe.data)
    setup = Setup(task.recipe, task.parts, task.teacher, splits, cache=None)
    scores = held_out_cosine(task.model, setup)

    assert scores.student == pytest.approx(1, abs=1e-4)
    assert scores.mean_token < 0.99


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("teacher.pretrain.lr", []),
        ("teacher.pretrain.label_lr", ["teacher.pretrain.label_epochs=1"]),
    ],
)
def test_a_pretraining_that_fails_names_its_own_setting(
    tiny_recipe_file: Path, tmp_path: Path, key: str, more: list[str]
) -> None:
    recipe = load_recipe(tiny_recipe_file, [f"{key}=1e30", *more, "seed=7"])

    with pytest.raises(TrainingError, match=f"--set {key}="):
        distill(recipe, RunDir.create(recipe, tmp_path / "run"))


def test_a_pretraining_stopped_in_a_distillation_says_how_that_resumes(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({**tiny_recipe, "seed": 8})  # not in the cache yet
    run = RunDir.create(recipe, tmp_path / "a run")
    random_view = pretrain.random_view

    def press_ctrl_c(*arguments: Any, **settings: Any) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        return random_view(*arguments, **settings)

    monkeypatch.setattr(pretrain, "random_view", press_ctrl_c)

    with pytest.raises(Interrupted) as stopped:
        distill(recipe, run)

    assert stopped.value.hint == f"resume: {run.resume_command}"
    assert f"'{run.path}' --resume" in stopped.value.hint


@pytest.mark.parametrize(
    ("gain", "between", "warning"),
    [
        ((-0.01, 0.03), 0.5, "(95 % interval over 18 images)"),
        ((-0.2, -0.1), 0.5, "(95 % interval over 18 images)"),
        ((0.001, 0.03), 0.04, "correlation 0.04 (an untrained one has 0)"),
        ((0.001, 0.03), 0.06, ""),
        ((0.001, 0.03), math.nan, ""),  # not measured by an earlier version
    ],
)
def test_a_student_that_knows_only_what_all_images_share_says_so(
    gain: tuple[float, float], between: float, warning: str
) -> None:
    held_out = HeldOut(
        student=0.02, mean_token=0.01, photos=18, gain_ci95=gain, between_images=between
    )

    line = not_better_than_the_mean(held_out)

    assert line.endswith(warning)
    assert bool(line) == bool(warning)


def batch_of(task: Distilling, count: int = 3) -> tuple[torch.Tensor, ...]:
    photos = torch.randint(0, 256, (count, 3, 73, 73), generator=torch.Generator().manual_seed(0))
    return next(iter(task.inputs(photos.byte(), torch.zeros(count), draws())))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("teacher", "where"),
    [
        ({}, "all"),
        ({"layers": [0, 1]}, "all"),
        ({"view": "visible"}, "visible"),
    ],
)
def test_the_embedding_term_compares_one_vector_per_image(
    tiny_recipe: dict[str, Any], teacher: dict[str, Any], where: str
) -> None:
    tiny_recipe["teacher"] |= teacher
    tiny_recipe["loss"] = {"where": where, "embedding_weight": 0.7}
    task = make_task(tiny_recipe)
    view, visible, targets, per_image = batch_of(task)

    scalars = task.model.eval()(view, visible, targets, per_image)

    predicted = task.model.student(normalize(view, task.model.mean, task.model.std), visible)
    cosine = F.cosine_similarity(predicted.embedding, targets[:, -1], dim=-1).mean()
    task.model.loss = DistillationLoss(where=where)
    tokens = task.model(view, visible, targets, per_image)["loss"]
    torch.testing.assert_close(scalars["embedding_cosine"], cosine)
    torch.testing.assert_close(scalars["loss"], tokens + 0.7 * (1 - cosine))


def test_a_term_that_needs_the_teacher_is_refused_without_one(tiny_recipe: dict[str, Any]) -> None:
    loss = {"feature_weight": 0, "pixel_weight": 1, "where": "all", "embedding_weight": 0.5}

    with pytest.raises(ValueError, match="set embedding_weight to 0 or feature_weight above 0"):
        Recipe.model_validate({**tiny_recipe, "loss": loss})


@pytest.mark.parametrize(
    ("section", "changes"),
    [("teacher", {"standardize": False}), ("loss", {"feature_weight": 0, "pixel_weight": 1})],
)
def test_weighed_sites_need_standardized_targets(
    tiny_recipe: dict[str, Any], section: str, changes: dict[str, Any]
) -> None:
    tiny_recipe["loss"] = {"weigh_sites": True}
    tiny_recipe[section] = {**tiny_recipe[section], **changes}

    with pytest.raises(ValueError, match="loss.weigh_sites needs standardized targets"):
        Recipe.model_validate(tiny_recipe)


def test_large_targets_of_a_cache_in_float16_have_a_finite_weight() -> None:
    targets, visible = torch.full((1, 4, 8), 1000.0).half(), torch.ones(1, 4, dtype=torch.bool)
    prediction = Prediction(torch.zeros(1, 4, 8))

    loss = DistillationLoss(weigh_sites=True)(prediction, targets, torch.zeros(1, 3, 8, 8), visible)

    assert loss["loss"].item() == pytest.approx(999.5)


def test_disjoint_masks_of_one_teacher_pass_share_no_patch(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["mask"] = {"ratio": 0.75, "per_image": 4, "disjoint": True, "patch": 16}
    task = make_task(tiny_recipe)

    updates = list(
        task.inputs(torch.zeros(2, 3, 73, 73, dtype=torch.uint8), torch.zeros(2), draws())
    )

    assert torch.equal(sum(visible.int() for _, visible, *_ in updates), torch.ones(2, 4, 4).int())


ALL_KEYS: dict[str, dict[str, Any]] = {
    "teacher": {"layers": [0, 1]},
    "student": {"head": "mlp"},
    "mask": {"ratio": {0: 0.75, 0.4: 0.5, 0.8: 0}, "per_image": 2, "disjoint": True},
    "loss": {"weigh_sites": True, "embedding_weight": 0.5},
}


def test_a_run_with_every_key_on_is_judged_on_tokens_and_saves_a_plain_backbone(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    for section, keys in ALL_KEYS.items():
        tiny_recipe[section] = {**tiny_recipe.get(section, {}), **keys}
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")

    result = distill(recipe, run)

    assert -1 <= result.held_out.student <= 1
    assert result.held_out.sites == "masked"
    assert "embedding_cosine" in _records(run.log_file)[-1]
    model = timm.create_model("resnet18", num_classes=0, **NARROW)
    model.load_state_dict(load_file(run.backbone_file), strict=True)


# Losses of three batches with the bundled teacher: new keys at their defaults draw the
# same random numbers and start from the same weights as before the keys existed.
GOLDEN: dict[str, tuple[dict[str, Any], list[float]]] = {
    "plain": ({}, [0.537303329, 0.545618892, 0.536734521]),
    "several": (
        {"mask": {"per_image": 3, "whole_share": 0.4}, "loss": {"pixel_weight": 0.2}},
        [0.780814290, 0.768163502, 0.533178389],
    ),
    "visible": (
        {"teacher": {"view": "visible"}, "loss": {"where": "visible"}},
        [0.582869530, 0.586710867, 0.585142434],
    ),
    "layers": (
        {"teacher": {"layers": [2, 5]}, "loss": {"target": "cosine"}},
        [1.000661254, 0.996407151, 1.000492334],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_with_new_keys_at_their_defaults_a_run_is_the_one_of_before(
    tiny_recipe: dict[str, Any], tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    drawn = torch.nn.init.trunc_normal_(torch.empty(3), std=0.02)
    if drawn[0].item() != pytest.approx(0.0308199, rel=1e-4):
        pytest.skip("this torch draws other initial weights: torch 2.7 does")
    changes, wanted = GOLDEN[name]
    tiny_recipe["teacher"] |= {"weights": "bundled", "args": {"patch_size": 8, "depth": 6}}
    extract_photos(tmp_path / "photos" / "train", split="train", per_class=6)
    tiny_recipe["data"] |= {"path": str(tmp_path / "photos"), "holdout": 0}
    tiny_recipe["train"] |= {"epochs": 3, "trackers": []}
    tiny_recipe["student"]["args"].pop("layers")  # as it was then
    for section, keys in changes.items():
        tiny_recipe[section] = {**tiny_recipe.get(section, {}), **keys}
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")

    distill(recipe, run)

    found = [record["loss"] for record in _records(run.log_file)]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_check_stops_early_judges_and_leaves_a_run_that_resumes_exactly(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(tiny_recipe)
    whole, checked = (RunDir.create(recipe, tmp_path / name) for name in ("whole", "checked"))
    distill(recipe, whole)

    found = first_updates(recipe, checked, 2)

    assert checked.checkpoint_file.is_file()
    assert not checked.is_distilled
    assert {"held_out", "knn", "knn_before", "signs", "doubts"} <= found.to_dict().keys()
    assert len(found.signs) + len(found.doubts) == 2
    low, high = found.knn_ci95
    assert 0 <= low <= found.knn <= high <= 1
    rates = [record["images_per_s"] for record in _records(checked.log_file)]
    assert min(rates) <= found.images_per_s <= max(rates)
    assert found.hours == pytest.approx(2 * 48 / found.images_per_s / 3600)
    shown = checked_lines(found)
    assert any(line.startswith("  the whole run takes 0.0 h at") for line in shown)
    distill(recipe, checked, resume=True)
    ends = [load_file(run.backbone_file) for run in (whole, checked)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_second_check_of_as_many_updates_adds_none(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")
    first_updates(recipe, run, 2)

    first_updates(recipe, run, 2, resume=True)

    assert [record["step"] for record in _records(run.log_file)] == [1, 2]


def test_a_run_is_not_resumed_with_another_teacher(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    vit = build(Recipe.model_validate(tiny_recipe)).vit
    file = tmp_path / "vit.safetensors"
    save_file({name: value.contiguous() for name, value in vit.state_dict().items()}, file)
    tiny_recipe["teacher"] |= {"weights": "path", "path": str(file)}
    del tiny_recipe["teacher"]["pretrain"]
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")
    first_updates(recipe, run, 2)
    save_file({name: value + 1 for name, value in vit.state_dict().items()}, file)

    with pytest.raises(RunError, match="began with other weights of the teacher"):
        distill(recipe, run, resume=True)


def test_auto_precision_of_another_machine_does_not_change_a_resumed_run(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(setup, "_bf16_is_faster_on_this_cpu", lambda: False)
    tiny_recipe["train"]["precision"] = "auto"
    run = RunDir(tmp_path / "run")
    hgkd_edge.check(tiny_recipe, run=run.path, updates=2)
    monkeypatch.setattr(setup, "_bf16_is_faster_on_this_cpu", lambda: True)

    hgkd_edge.distill(tiny_recipe, run=run.path, resume=True)

    assert run.manifest().precision == "fp32"
    assert len(list((tmp_path / "cache" / "teachers").iterdir())) == 1


def test_a_check_doubts_a_student_that_learned_nothing(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe["train"]["lr"] = 1e-12
    recipe = Recipe.model_validate(tiny_recipe)
    # As torch 2.14 draws the initial weights: nearer to the images than the mean token is.
    untrained = HeldOut(
        student=0.035, mean_token=-0.036, photos=18, gain_ci95=(0.029, 0.112), between_images=-0.001
    )
    monkeypatch.setattr("hgkd_edge.distillation.check.held_out_if_readable", lambda *_: untrained)

    found = first_updates(recipe, RunDir.create(recipe, tmp_path / "run"), 2)

    assert found.signs == []
    assert [line.split()[0] for line in found.doubts] == ["predicts", "k-NN"]


def test_a_student_of_visible_sites_is_scored_on_these(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["loss"] = {"where": "visible"}

    assert judged_sites(Recipe.model_validate(tiny_recipe)) == "visible"
