from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hgkd_edge.data import augment
from hgkd_edge.data.augment import center_view, random_view
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.masks import (
    BLOCK_DRAWS,
    block_masks,
    disjoint_masks,
    mask_grid,
    random_masks,
    visible_count,
)
from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe_sections import DataConfig


@given(
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5),
    low=st.floats(0.05, 1),
)
def test_every_draw_gives_a_view_of_the_asked_size(draws: list[float], low: float) -> None:
    canvas = torch.arange(3 * 37 * 55, dtype=torch.int32).remainder(256).to(torch.uint8)

    view = random_view(
        canvas.view(1, 3, 37, 55), torch.tensor([draws]), size=(32, 48), scale=(low, 1.0), flip=True
    )

    assert view.shape == (1, 3, 32, 48)
    assert view.min() >= 0
    assert view.max() <= 1


def test_the_flip_mirrors_and_a_whole_crop_shows_everything() -> None:
    canvas = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    flipped = torch.tensor([[0.99, 0.1, 0.0, 0.0, 0.0]])
    straight = torch.tensor([[0.99, 0.9, 0.0, 0.0, 0.9]])

    views = [
        random_view(canvas, d, size=(32, 32), scale=(1.0, 1.0), flip=True)
        for d in (flipped, straight)
    ]

    torch.testing.assert_close(views[0].flip(-1), views[1])
    torch.testing.assert_close(views[1], center_view(canvas, size=(32, 32)))
    unflipped = random_view(canvas, flipped, size=(32, 32), scale=(1.0, 1.0), flip=False)
    torch.testing.assert_close(unflipped, views[1])


def test_without_crops_and_flips_the_view_is_the_whole_canvas_on_a_gpu_too() -> None:
    canvas = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)
    whole = center_view(canvas, size=(40, 64))

    view = random_view(canvas, torch.zeros(2, 5), size=(40, 64), scale=(1.0, 1.0), flip=False)

    torch.testing.assert_close(view, whole)
    boxes = torch.tensor([[0, 0, 40, 64, 0]] * 2)
    torch.testing.assert_close(augment._cut_all(canvas, boxes, (40, 64)), whole)


def test_crops_of_a_whole_batch_are_those_of_one_image_at_a_time(photos: Path) -> None:
    source = open_splits(DataConfig(source="folder", path=photos, image_size=(56, 64)))["train"]
    canvas = source.images[torch.arange(16)]
    draws = torch.rand(16, 5, generator=torch.Generator().manual_seed(0))

    one_by_one = random_view(canvas, draws, size=(56, 64), scale=(0.67, 1.0), flip=True)
    boxes = [augment._box(row, canvas.shape[-2:], (0.67, 1.0), True) for row in draws.tolist()]
    at_once = augment._cut_all(canvas, torch.tensor(boxes), (56, 64))

    gap = (at_once - one_by_one).abs().mean()
    assert gap < 1 / 255  # rounding and smoothing; a crop shifted by one pixel differs far more
    adjacent = torch.tensor(boxes) + torch.tensor([0, 1, 0, 0, 0])
    assert (augment._cut_all(canvas, adjacent, (56, 64)) - one_by_one).abs().mean() > 4 * gap


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ratio=st.floats(0, 0.99),
    seed=st.integers(0, 2**31),
)
def test_every_mask_has_the_same_number_visible(
    grid: tuple[int, int], ratio: float, seed: int
) -> None:
    draws = torch.rand(4, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    try:
        count = visible_count(grid, ratio)
    except RecipeError:
        return

    visible = random_masks(draws, grid, ratio)

    assert visible.shape == (4, *grid)
    assert visible.flatten(1).sum(1).tolist() == [count] * 4


def test_impossible_masks_are_refused_with_a_fix() -> None:
    with pytest.raises(RecipeError, match="set data.image_size to 224"):
        mask_grid((230, 230), 32)
    with pytest.raises(RecipeError, match="leaves nothing visible"):
        visible_count((2, 2), 0.9)


@pytest.mark.parametrize(
    ("masks", "grid", "ratio"),
    [(4, (4, 4), 0.75), (2, (3, 5), 0.6), (3, (4, 4), 0.6), (5, (2, 3), 0.5), (3, (2, 2), 0.0)],
)
def test_disjoint_masks_show_every_patch_once_before_any_twice(
    masks: int, grid: tuple[int, int], ratio: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(8, grid[0] * grid[1], generator=generator) for _ in range(masks)]

    visible = list(disjoint_masks(noise, grid, ratio))

    count = visible_count(grid, ratio)
    times = torch.zeros(8, *grid)
    for mask in visible:
        assert (mask.flatten(1).sum(dim=1) == count).all()
        times += mask
        assert ((times.amax((1, 2)) - times.amin((1, 2))) <= 1).all()
    assert (times.max() <= 1) == (masks * count <= grid[0] * grid[1])
    assert torch.equal(visible[0], random_masks(noise[0], grid, ratio))


def test_disjoint_masks_differ_from_image_to_image() -> None:
    noise = torch.rand(3, 32, 16, generator=torch.Generator().manual_seed(0))

    visible = torch.stack(list(disjoint_masks(noise, (4, 4), 0.6)))

    assert all(len(masks.unique(dim=0)) > 16 for masks in visible)
    assert (visible.float().mean(dim=(0, 1)) - 6 / 16).abs().max() < 0.15  # every patch alike


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (8, 8), (6, 14)])
@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.3, 0.3), (0.01, 0.02)])
def test_block_masks_hide_the_drawn_share_and_never_nothing(
    grid: tuple[int, int], ratio: tuple[float, float]
) -> None:
    draws = torch.rand(400, BLOCK_DRAWS, generator=torch.Generator().manual_seed(0))
    wanted = ratio[0] + draws[:, 0] * (ratio[1] - ratio[0])
    tokens = grid[0] * grid[1]

    masked = (~block_masks(draws, grid, ratio)).sum(dim=(1, 2))

    assert masked.min() >= 1
    missed = (masked - (wanted * tokens).clamp(min=1)).abs()
    assert missed.mean() <= max(1.0, 0.03 * tokens)
    assert masked.max() < tokens


def test_block_masks_are_blocks_and_each_depends_on_its_own_draws_only() -> None:
    draws = torch.rand(64, BLOCK_DRAWS, generator=torch.Generator().manual_seed(0))
    masked = ~block_masks(draws, (12, 12), (0.3, 0.3))

    assert torch.equal(masked[5:6], ~block_masks(draws[5:6], (12, 12), (0.3, 0.3)))
    right_neighbor = masked[:, :, 1:][masked[:, :, :-1]].float().mean()
    assert right_neighbor > 0.6  # 0.3 if they were independent
