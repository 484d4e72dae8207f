"""Targets cached on disk belong to exactly the views that the student sees."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hgkd_edge.data.augment import center_view
from hgkd_edge.data.sources import held_out_split, open_splits
from hgkd_edge.distillation import target_cache
from hgkd_edge.distillation.distill import distill, first_updates
from hgkd_edge.distillation.dry_run import dry_run
from hgkd_edge.distillation.held_out import held_out_cosine
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.setup import Setup, make_model, make_teacher
from hgkd_edge.distillation.target_cache import cached_targets
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Draws
from hgkd_edge.errors import RecipeError, RunError
from hgkd_edge.files import cache_dir, locked
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir

Fill = Callable[[int], Path]


def with_cache(mapping: dict[str, Any], views: int = 2, **sections: Any) -> Recipe:
    teacher = {**mapping["teacher"], "cache": views, **sections.pop("teacher", {})}
    return Recipe.model_validate({**mapping, **sections, "teacher": teacher})


def made(recipe: Recipe) -> tuple[Teacher, Any, Any]:
    parts = build(recipe)
    return make_teacher(recipe, parts), parts, open_splits(recipe.data)["train"]


@pytest.mark.parametrize("embedding", [0.0, 1.0])
def test_cached_targets_are_what_the_teacher_says_of_the_students_view(
    tiny_recipe: dict[str, Any], embedding: float
) -> None:
    recipe = with_cache(
        tiny_recipe,
        loss={"embedding_weight": embedding},
        mask={"per_image": 2},
    )
    teacher, parts, source = made(recipe)
    cache = cached_targets(teacher, source, recipe)
    task = Distilling(make_model(recipe, parts, teacher), teacher, parts, recipe, cache)
    photos = torch.tensor([5, 0, 11, 5])
    draws = Draws(torch.Generator().manual_seed(0), 0, 1, torch.device("cpu"), 0.0, photos)

    first, second = task.inputs(source.images[photos], torch.zeros(4), draws)

    view, visible, targets, _ = first
    assert targets.shape == (4, *teacher.center.shape)
    assert targets.dtype == torch.float32
    assert cache.views(photos, torch.rand(4))[1].dtype == torch.float16, "as they are on disk"
    torch.testing.assert_close(targets, teacher(view), atol=5e-3, rtol=5e-3)
    assert second[2] is targets, "the masks of one view share its targets"
    assert not torch.equal(visible, second[1])


def test_a_second_run_finds_the_targets_and_another_teacher_or_image_does_not(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_cache(tiny_recipe)
    teacher, _, source = made(recipe)
    first = cached_targets(teacher, source, recipe)
    passes: list[int] = []
    teacher.register_forward_hook(lambda *_: passes.append(1))

    again = cached_targets(teacher, source, recipe)

    assert again.folder == first.folder
    assert not passes
    folders = {first.folder}
    source.fingerprint = "other images"
    folders.add(cached_targets(teacher, source, recipe).folder)
    with torch.no_grad():
        teacher.center += 1
    folders.add(cached_targets(teacher, source, recipe).folder)
    folders.add(cached_targets(teacher, source, with_cache(tiny_recipe, seed=1)).folder)
    for data in ({"flip": False}, {"crop_scale": (0.5, 1.0)}):
        views = with_cache(tiny_recipe, data={**tiny_recipe["data"], **data})
        folders.add(cached_targets(teacher, source, views).folder)
    teacher.mean = (0.0, 0.0, 0.0)  # of the images that the teacher sees
    folders.add(cached_targets(teacher, source, recipe).folder)
    assert len(folders) == 7


def test_a_stopped_filling_continues_where_it_was(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_cache, "BATCH", 8)
    monkeypatch.setattr(target_cache, "MARK_EVERY", 2)
    recipe = with_cache(tiny_recipe)
    teacher, _, source = made(recipe)
    whole = np.array(cached_targets(teacher, source, recipe).targets)
    shutil.rmtree(cache_dir() / "targets")
    passes: list[int] = []

    def stop_at_fifth(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 5:
            raise KeyboardInterrupt

    hook = teacher.register_forward_hook(stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        cached_targets(teacher, source, recipe)

    passes.clear()
    hook.remove()
    teacher.register_forward_hook(lambda *_: passes.append(1))
    continued = cached_targets(teacher, source, recipe)

    assert len(passes) == 2 * -(-len(source) // 8) - 4, "the four that were marked are not repeated"
    np.testing.assert_array_equal(continued.targets, whole)


@pytest.mark.parametrize("filled", [True, False], ids=["whole", "stopped in the middle"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:1000],
        lambda content: content.replace(b"(", b"((", 1),
        lambda content: content.replace(b"'", b"7", 1),
        lambda content: b"PK\x05\x06" + bytes(18),  # an archive without files
    ],
    ids=["removed", "cut off", "an open bracket", "a name without its quote", "a zip"],
)
def test_damaged_targets_are_computed_again(
    tiny_recipe: dict[str, Any], damage: Callable[[bytes], bytes], filled: bool
) -> None:
    recipe = with_cache(tiny_recipe)
    teacher, _, source = made(recipe)
    first = cached_targets(teacher, source, recipe)
    wanted = np.array(first.targets)
    file = first.folder / "targets.npy"
    content = damage(file.read_bytes())
    file.unlink()
    if content:
        file.write_bytes(content)
    if not filled:
        (first.folder / "done.json").rename(first.folder / "progress.json")
        (first.folder / "progress.json").write_text('{"passes": 1}')

    again = cached_targets(teacher, source, recipe)

    np.testing.assert_array_equal(again.targets, wanted)


def test_two_runs_that_start_together_compute_the_targets_once(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["teacher"] |= {"weights": "bundled", "args": {"patch_size": 8, "depth": 6}}
    recipe = with_cache(tiny_recipe, seed=7)
    teachers = [made(recipe) for _ in range(2)]
    passes: list[int] = []
    for teacher, _, _ in teachers:
        teacher.register_forward_hook(lambda *_: passes.append(1))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda each: cached_targets(each[0], each[2], recipe), teachers)

    assert one.folder == other.folder
    assert len(passes) == 2, "one pass for each view"
    assert (np.abs(one.targets).sum(axis=(2, 3)) > 0).all()


def test_a_disk_that_cannot_reserve_the_bytes_is_refused(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target_cache, "reserve", full)
    recipe = with_cache(tiny_recipe, seed=8)
    teacher, _, source = made(recipe)
    before = set((cache_dir() / "targets").glob("*/*"))

    with pytest.raises(RecipeError, match=r"teacher.cache = 2: needs .*HGKD_EDGE_CACHE"):
        cached_targets(teacher, source, recipe)

    left = set((cache_dir() / "targets").glob("*/*")) - before
    assert {file.name for file in left} == {".lock"}


def test_a_run_with_cached_targets_resumes_exactly(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = with_cache(tiny_recipe, mask={"ratio": {0: 0.75, 0.5: 0}, "per_image": 2})
    whole, stopped = (RunDir.create(recipe, tmp_path / name) for name in ("whole", "stopped"))
    distill(recipe, whole)

    first_updates(recipe, stopped, 6)
    distill(recipe, stopped, resume=True)

    one, other = (load_file(run.backbone_file) for run in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    log = [json.loads(line) for line in whole.log_file.read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]


def test_the_held_out_baseline_is_the_mean_of_the_cached_targets(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_cache(tiny_recipe, views=3, mask={"ratio": 0}, seed=5)
    teacher, parts, source = made(recipe)
    splits = open_splits(recipe.data)
    cache = cached_targets(teacher, source, recipe)
    model = make_model(recipe, parts, teacher)
    setup = Setup(recipe, parts, teacher, splits, cache)
    shown: list[int] = []
    targets = teacher.targets
    monkeypatch.setattr(
        teacher,
        "targets",
        lambda images, *more: (shown.append(len(images)), targets(images, *more))[1],
    )

    scores = held_out_cosine(model, setup)

    held_out = splits[held_out_split(splits)]
    assert sum(shown) == len(held_out), "no training image goes through the teacher again"
    mean = torch.from_numpy(cache.targets[:, 0].astype(np.float32)).mean(dim=0)
    true = teacher(center_view(held_out.images[:], size=recipe.data.size))
    expected = torch.cosine_similarity(mean.expand_as(true), true, dim=-1).mean().item()
    assert scores.mean_token == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"teacher": {"view": "visible"}, "loss": {"where": "visible"}}, "changes with every mask"),
        (
            {"data": {"crop_scale": [1, 1], "flip": False}},
            "all views are equal: set teacher.cache to 1",
        ),
        (
            {"loss": {"feature_weight": 0, "pixel_weight": 1, "where": "masked"}},
            "feature_weight 0 has no teacher",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(
    tiny_recipe: dict[str, Any], sections: dict[str, Any], expected: str
) -> None:
    sections = {key: {**tiny_recipe.get(key, {}), **keys} for key, keys in sections.items()}
    with pytest.raises(ValueError, match=expected):
        with_cache(tiny_recipe, **sections)


def test_streamed_images_and_a_full_disk_are_refused_in_one_line(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming = with_cache(tiny_recipe, data={**tiny_recipe["data"], "decode": "streaming"})
    teacher, _, source = made(streaming)
    with pytest.raises(RecipeError, match=r"teacher.cache: .*data.decode=once"):
        cached_targets(teacher, source, streaming)

    recipe = with_cache(tiny_recipe, views=3)
    teacher, _, source = made(recipe)
    usage = shutil.disk_usage(Path.cwd())._replace(free=10)
    monkeypatch.setattr(target_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RecipeError, match=r"teacher.cache = 3: needs 0.0 GB .*are free"):
        cached_targets(teacher, source, recipe)


def test_streamed_images_are_refused_before_the_teacher_is_pretrained(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    recipe = with_cache(tiny_recipe, data={**tiny_recipe["data"], "decode": "streaming"})
    recipe = recipe.model_copy(
        update={"teacher": recipe.teacher.model_copy(update={"weights": "pretrain"})}
    )

    with pytest.raises(RecipeError, match="teacher.cache: needs the images decoded"):
        distill(recipe, RunDir.create(recipe, tmp_path / "run"))
    with pytest.raises(RecipeError, match="teacher.cache: needs the images decoded"):
        dry_run(recipe)
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_other_heads_has_other_targets(tiny_recipe: dict[str, Any]) -> None:
    """Its weights are the same."""
    tiny_recipe["teacher"]["standardize"] = False
    folders = set()
    for heads in (3, 6):
        tiny_recipe["teacher"]["args"]["num_heads"] = heads
        recipe = with_cache(tiny_recipe)
        teacher, _, source = made(recipe)
        folders.add(cached_targets(teacher, source, recipe).folder)

    assert len(folders) == 2


@pytest.fixture
def cache_for_two(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Fill:
    """Fills an entry by its seed, in a cache that has room for two; returns its file."""
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HGKD_EDGE_CACHE_GB", str(2.5 * 2 * 2 * 48 * 64 * 48 / 1e9))
    teacher, _, source = made(with_cache(tiny_recipe))

    def fill(seed: int) -> Path:
        cache = cached_targets(teacher, source, with_cache(tiny_recipe, seed=seed))
        return cache.folder / "targets.npy"

    return fill


def test_the_entry_that_was_not_used_for_longest_makes_room(
    cache_for_two: Fill, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (cache_for_two(seed) for seed in (0, 1))
    os.utime(first, (1000, 1000))
    os.utime(second, (2000, 2000))
    assert cache_for_two(0) == first, "which is a use"

    third = cache_for_two(2)

    assert first.is_file()
    assert third.is_file()
    assert {file.name for file in second.parent.iterdir()} == {".lock"}
    expected = capsys.readouterr().err
    assert f"targets found in {first.parent}" in expected
    assert f"removed {second.parent}, 0.00 GB last used on 1970-01-01" in expected


def test_an_entry_that_another_run_fills_is_kept(cache_for_two: Fill) -> None:
    first, second = (cache_for_two(seed) for seed in (0, 1))
    os.utime(first, (1000, 1000))

    with locked(first.parent, lambda _: None):
        cache_for_two(2)

    assert first.is_file()
    assert not second.is_file()


def test_nothing_is_removed_for_targets_that_would_not_fit_anyway(
    cache_for_two: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache_for_two(0)
    usage = shutil.disk_usage(Path.cwd())._replace(free=10)
    monkeypatch.setattr(target_cache.shutil, "disk_usage", lambda _: usage)
    first.write_bytes(b"short")

    with pytest.raises(RecipeError, match="are free"):
        cache_for_two(1)

    assert first.is_file()


@pytest.mark.parametrize("limit", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_no_size_is_named(cache_for_two: Fill, limit: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match="HGKD_EDGE_CACHE_GB"):
        patch.setenv("HGKD_EDGE_CACHE_GB", limit)
        cache_for_two(0)


def test_who_waits_for_another_run_says_so_and_shows_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgkd_edge.files.time.sleep", lambda _: None)
    waited: list[int] = []

    def wait(seconds: int) -> None:
        waited.append(seconds)
        if seconds == 3:
            release.close()

    release = contextlib.ExitStack()
    release.enter_context(locked(tmp_path, wait))
    with locked(tmp_path, wait):
        pass

    assert waited == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        ("done.json", "{}"),
        ("done.json", "[]"),
        ("progress.json", '{"passes": 999}'),
        ("progress.json", '{"passes": -5}'),
        ("progress.json", "{}"),
        ("progress.json", '{"pas'),
    ],
)
def test_markers_that_are_damaged_or_forged_are_not_believed(
    tiny_recipe: dict[str, Any], marker: str, content: str
) -> None:
    recipe = with_cache(tiny_recipe)
    teacher, _, source = made(recipe)
    first = cached_targets(teacher, source, recipe)
    wanted = np.array(first.targets)
    zeros = np.load(first.folder / "targets.npy", mmap_mode="r+")
    zeros[:] = 0
    zeros.flush()
    (first.folder / "done.json").unlink()
    (first.folder / marker).write_text(content)

    np.testing.assert_array_equal(cached_targets(teacher, source, recipe).targets, wanted)


def test_a_link_in_the_place_of_the_targets_is_not_followed(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = with_cache(tiny_recipe)
    teacher, _, source = made(recipe)
    first = cached_targets(teacher, source, recipe)
    wanted = np.array(first.targets)
    victim = Path(shutil.copy(first.folder / "targets.npy", tmp_path / "victim"))
    before = victim.read_bytes()
    (first.folder / "targets.npy").unlink()
    (first.folder / "targets.npy").symlink_to(victim)
    (first.folder / "done.json").unlink()
    (first.folder / "progress.json").write_text('{"passes": 0}')

    np.testing.assert_array_equal(cached_targets(teacher, source, recipe).targets, wanted)
    assert victim.read_bytes() == before
