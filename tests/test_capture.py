"""The student's pass makes no decision on the host, as a CUDA graph requires; tested on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hgkd_edge.data.augment import normalize, random_view
from hgkd_edge.data.zoom import random_zoom
from hgkd_edge.distillation.distill import distill
from hgkd_edge.distillation.masks import random_masks
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Draws, Inputs
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import choice, convolution
from tests.engine.helpers import log_lines
from tests.test_distill import make_task
from tests.tracing import Tracing, host_data, record

STUDENTS: dict[str, dict[str, Any]] = {
    "resnet18": {"args": {"channels": [8, 16, 24, 32], "layers": [2, 1, 1, 1]}, "stem_stride": 2},
    "mobilenetv3_small_100": {"stem_stride": 4},
    "convnext_atto": {"args": {"depths": [1, 1, 1, 1]}, "stem_stride": 4},
}


def task_for(recipe: dict[str, Any], student: str, **sections: Any) -> Distilling:
    side = 8 if student == "resnet18" else 16  # pixels of a token
    recipe["student"] = {"name": student, "decoder_width": 16, **STUDENTS[student]}
    recipe["teacher"]["args"] = {"patch_size": side, "depth": 2, "embed_dim": 48}
    recipe["data"]["image_size"] = 64 if student == "resnet18" else 128
    return make_task({**recipe, **sections})


def inputs_of(task: Distilling, seed: int, progress: float = 0.0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    side = task.recipe.data.size[0] + 8
    photos = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    draws = Draws(generator, 0, 1, torch.device("cpu"), progress)
    return next(iter(task.inputs(photos, torch.zeros(2), draws)))


def run(model: nn.Module, inputs: Inputs, *, half: bool = False) -> dict[str, Tensor]:
    """What the loop records."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = model(*inputs)
    outputs["loss"].backward()
    return {name: value.detach() for name, value in outputs.items()}


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch, made_again: None) -> None:
    """On the CPU, the kernels that the table has for a GPU; they must pass the proof too."""
    monkeypatch.setattr(convolution, "choose", lambda device, *of: choice.choose("cuda", *of))


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(
    ("student", "sections", "progress", "half"),
    [
        ("resnet18", {"loss": {"pixel_weight": 1.0}}, 0.0, False),
        ("resnet18", {"mask": {"whole_share": 0.5}}, 0.9, True),
        ("resnet18", {"loss": {"embedding_weight": 0.5, "weigh_sites": True}}, 0.0, True),
        ("mobilenetv3_small_100", {"loss": {"where": "masked", "target": "cosine"}}, 0.0, False),
        ("convnext_atto", {"loss": {"embedding_weight": 0.5}}, 0.0, False),
    ],
)
def test_a_pass_recorded_with_one_mask_is_right_for_another(
    tiny_recipe: dict[str, Any], student: str, sections: dict[str, Any], progress: float, half: bool
) -> None:
    task = task_for(tiny_recipe, student, **sections)
    model = task.model.train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    first, other = (inputs_of(task, seed, progress) for seed in (1, 2))
    torch.manual_seed(0)
    wanted = run(model, other, half=half)
    gradients = [None if w.grad is None else w.grad.clone() for w in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.load_state_dict(start)
    model.zero_grad(set_to_none=True)
    tracing = Tracing(model)

    replay = tracing.capture(lambda inputs: run(model, inputs, half=half), first)
    assert host_data(tracing.traces[0]) == []
    for static, new in zip(first, other, strict=True):
        if isinstance(static, Tensor):
            static.copy_(new)
    torch.manual_seed(0)
    found = replay()

    assert {name: value.item() for name, value in found.items()} == {
        name: value.item() for name, value in wanted.items()
    }
    assert all(map(_equal, (w.grad for w in model.parameters()), gradients))
    assert all(map(_equal, model.buffers(), buffers))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other is None or torch.equal(one, other)  # type: ignore[arg-type]


def test_a_recorded_distillation_is_the_same_to_the_last_bit(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4, 8, 8 and 16 visible patches: with as many as before, nothing is recorded again.
    ratio = {0: 0.75, 0.2: 0.5, 0.4: 0.52}
    tiny_recipe["mask"] = {"per_image": 2, "ratio": ratio, "whole_share": 0.3}
    tiny_recipe["student"]["args"]["layers"] = [2, 1, 1, 1]
    tiny_recipe["train"] |= {"epochs": 3, "trackers": []}
    recipe = Recipe.model_validate(tiny_recipe)
    folders = [tmp_path / "eager", tmp_path / "recorded"]
    distill(recipe, RunDir.create(recipe, folders[0]))
    made = record(monkeypatch)

    distill(recipe, RunDir.create(recipe, folders[1]))

    assert [len(tracing.traces) for tracing in made] == [3]
    assert made[0].replays == 18 - 2 * 3
    assert log_lines(folders[0]) == log_lines(folders[1])
    eager, recorded = (load_file(folder / "backbone.safetensors") for folder in folders)
    assert all(torch.equal(eager[name], recorded[name]) for name in eager)


def test_without_a_known_number_of_patches_nothing_can_be_recorded(
    tiny_recipe: dict[str, Any],
) -> None:
    task = task_for(tiny_recipe, "resnet18")

    with pytest.raises(Exception, match="nonzero|data-dependent"):
        Tracing(task.model).capture(lambda inputs: run(task.model, inputs[:3]), inputs_of(task, 1))


class StaysOnTheDevice(TorchDispatchMode):
    """Fails at an operation on tensors of two devices, and at one that asks for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        assert len({x.device.type for x in tensors}) <= 1, f"{func} copies between devices"
        return out


def on_fake_gpu(module: nn.Module) -> None:
    """Weights and buffers of a module as tensors on a GPU that does not exist."""
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for name, value in tensors.items():
                if value is not None:
                    fake = torch.empty_strided(
                        value.shape, value.stride(), dtype=value.dtype, device="cuda"
                    )
                    is_weight = isinstance(value, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, value.requires_grad) if is_weight else fake


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU shall not exist")
@pytest.mark.parametrize(
    ("student", "sees"),
    [("resnet18", "full"), ("mobilenetv3_small_100", "full"), ("convnext_atto", "visible")],
)
def test_on_a_gpu_nothing_waits_between_the_view_and_the_loss(
    tiny_recipe: dict[str, Any], student: str, sees: str
) -> None:
    tiny_recipe["teacher"]["view"] = sees
    task = task_for(tiny_recipe, student, loss={"where": "visible", "pixel_weight": 1.0})
    grid, (view, _, _, count) = task.parts.mask_grid, inputs_of(task, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_gpu(task.model)
        on_fake_gpu(task.teacher)
        images = torch.empty(view.shape, device="cuda")
        noise = torch.empty(len(images), grid[0] * grid[1], device="cuda")

        with StaysOnTheDevice():
            visible = random_masks(noise, grid, task.recipe.mask.ratio)
            tokens = visible.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
            seen = tokens if sees == "visible" else None
            targets = task.teacher.targets(images, seen, 4 * count)
            outputs = task.model(images, visible, targets, count)

    assert outputs["loss"].device.type == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU shall not exist")
def test_crops_are_computed_where_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []

    def to_device(tensor: Tensor, device: torch.device) -> Tensor:
        moved.append(tuple(tensor.shape))
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    monkeypatch.setattr("hgkd_edge.data.augment.to_device", to_device)
    draws = torch.rand(4, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        canvas = torch.empty(4, 3, 73, 73, dtype=torch.uint8, device="cuda")

        with StaysOnTheDevice():
            view = random_view(canvas, draws, size=(64, 64), scale=(0.67, 1.0), flip=True)

    assert view.shape == (4, 3, 64, 64)
    assert moved == [(4, 5)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU shall not exist")
def test_views_of_annotated_images_copy_nothing_from_the_host() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        draws, canvas = torch.empty(4, 5, device="cuda"), torch.empty(4, 3, 48, 80, device="cuda")
        boxes, labels = torch.empty(4, 6, 5, device="cuda"), canvas[:, 0]

        with StaysOnTheDevice():
            zoom = random_zoom(draws, zoom=(0.8, 1.2), flip=True, vertical_flip=True)
            seen = zoom.images(canvas), zoom.labels(labels), zoom.boxes(boxes, (48, 80))
            views = normalize(seen[0], (0.5,) * 3, (0.5,) * 3), *seen[1:]

    assert [view.device.type for view in views] == ["cuda"] * 3
