"""Tests that need a GPU. `pytest tests/test_gpu.py` on a machine that has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from hgkd_edge.data import augment
from hgkd_edge.distillation.distill import distill
from hgkd_edge.engine import graph, loop
from hgkd_edge.errors import TrainingError
from hgkd_edge.models.backbone import load_embedding_net
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import convolution, launch, sparsify
from tests.engine.helpers import Classify, Masks, losses, run, tiny_source
from tests.engine.test_graph import Asks
from tests.engine.test_memory import Huge
from tests.sparse.helpers import distance, network, pair, random_visible

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def step(
    encoder: torch.nn.Module, images: torch.Tensor, visible: torch.Tensor, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Maps and parameter gradients of a fixed random projection; bf16 and fp16 by autocast."""
    images, half = images.cuda(), dtype.itemsize == 2
    with torch.autocast("cuda", dtype if half else torch.bfloat16, enabled=half):
        maps = [m.to(images.dtype) for m in encoder.cuda()(images, visible.cuda())]
    generator = torch.Generator("cuda").manual_seed(0)
    loss = torch.zeros((), device="cuda", dtype=images.dtype)
    for m in maps:
        loss = loss + (m * torch.randn(m.shape, generator=generator, device="cuda")).mean()
    loss.backward()
    return maps, [p.grad for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("method", ["rows", "native", "grid", "direct", "table", "torch"])
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "convnext_atto"]
)
def test_tiles_equal_the_masked_reference(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "rows":  # the table never chooses it for grouped layers
        monkeypatch.setattr(
            convolution, "choose", lambda *of: "rows" if of[2].groups == 1 else "native"
        )
    elif method == "torch":  # as where Triton is not installed
        monkeypatch.setattr(launch, "ready", lambda _: False)
    elif method != "table":
        monkeypatch.setattr(convolution, "choose", lambda *_: method)
    tiles, masked = pair(network(name, torch.float64))
    images = torch.rand(4, 3, 128, 160, dtype=torch.float64)
    visible = random_visible(4, 4, 5)

    ours = step(tiles, images, visible, torch.float64)
    theirs = step(masked, images, visible, torch.float64)

    assert distance(ours[0], theirs[0]) < 1e-10
    assert distance(ours[1], theirs[1]) < 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_masked_reference(dtype: torch.dtype) -> None:
    tiles, masked = pair(network("resnet18", act_layer=torch.nn.SiLU))
    images, visible = torch.rand(4, 3, 128, 160), random_visible(4, 4, 5)

    ours = step(tiles, images, visible, dtype)
    theirs = step(masked, images, visible, torch.float32)

    assert distance(ours[0], theirs[0]) < 0.05
    assert distance(ours[1], theirs[1]) < 0.1


def test_crops_on_the_gpu_are_those_on_the_cpu() -> None:
    smooth = torch.linspace(0, 255, 73)
    canvas = (smooth[:, None] * 0.5 + smooth * 0.5).byte().expand(8, 3, 73, 73).contiguous()
    draws = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))

    on_cpu = augment.random_view(canvas, draws, size=(64, 64), scale=(0.67, 1.0), flip=True)
    on_gpu = augment.random_view(
        canvas.cuda(), draws.cuda(), size=(64, 64), scale=(0.67, 1.0), flip=True
    )

    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2 / 255, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_distillation_learns_and_its_backbone_is_the_same_on_a_cpu(
    tiny_recipe: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    tiny_recipe["train"] |= {"precision": precision, "epochs": 6, "lr": 3e-3, "trackers": []}
    tiny_recipe["mask"] = {"per_image": 2}
    run = RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")

    distill(Recipe.model_validate(tiny_recipe), run)

    losses = [json.loads(line)["loss"] for line in run.log_file.read_text().splitlines()]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    images = torch.rand(4, 3, 64, 64)
    with torch.inference_mode():
        here = load_embedding_net(run.backbone_file)(images)
        there = load_embedding_net(run.backbone_file).cuda()(images.cuda()).cpu()
    assert F.cosine_similarity(here, there).min() > 0.999


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "convnext_atto"]
)
def test_a_captured_pass_is_right_for_another_mask(name: str) -> None:
    captured, eager = (sparsify(network(name, torch.float64)).cuda() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(4, 20, generator=generator).argsort(1) < 8 for _ in range(5)]
    batches = [
        (torch.rand(4, 3, 128, 160, generator=generator).double().cuda(), mask.view(4, 4, 5).cuda())
        for mask in masks
    ]

    def work_of(encoder: torch.nn.Module) -> Any:
        def work(inputs: Any) -> dict[str, torch.Tensor]:
            loss = torch.stack([m.square().mean() for m in encoder(*inputs)]).sum()
            loss.backward()
            return {"loss": loss.detach()}

        return work

    replayed = graph.GraphedPass(work_of(captured), captured, graph.CudaGraphs)
    for images, visible in batches:  # two of them before the capture
        if not replayed.holds_gradients:
            captured.zero_grad(set_to_none=True)
        eager.zero_grad(set_to_none=True)
        ours = replayed((images, visible, 8), adds=False)["loss"].clone()
        theirs = work_of(eager)((images, visible, 8))["loss"]
        grads = [
            [p.grad for p in encoder.parameters() if p.grad is not None]
            for encoder in (captured, eager)
        ]

        assert distance([ours], [theirs]) < 1e-10
        assert distance(*grads) < 1e-8

    assert replayed.holds_gradients
    states = [list(encoder.state_dict().values()) for encoder in (captured, eager)]
    assert distance(*states) < 1e-8  # BatchNorm saw every batch once


@pytest.mark.parametrize(
    ("mask", "train"),
    [
        ({}, {}),
        ({"per_image": 2}, {"accumulate": 2}),
        ({"per_image": 2, "whole_share": 0.5}, {}),
        ({}, {"optimizer": "lamb"}),
    ],
)
def test_a_distillation_as_a_graph_follows_the_eager_one(
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mask: dict[str, Any],
    train: dict[str, Any],
) -> None:
    tiny_recipe["mask"] = mask
    curves = {}
    for setting in ("auto", "off"):
        tiny_recipe["train"] |= {"epochs": 4, "trackers": [], "graph": setting, **train}
        recipe = Recipe.model_validate(tiny_recipe)
        distill(recipe, RunDir.create(recipe, tmp_path / setting))
        curves[setting] = torch.tensor(losses(tmp_path / setting))

    assert "without a CUDA graph" not in capsys.readouterr().err
    torch.testing.assert_close(curves["auto"], curves["off"], rtol=1e-2, atol=1e-3)


def test_the_host_waits_for_nothing_in_an_update(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_batch, watched = loop._Loop._train_batch, []

    def watch(self: Any, *batch: Any) -> Any:
        captured = self.graphed is not None and self.graphed.holds_gradients
        torch.cuda.set_sync_debug_mode("error" if captured else "default")
        try:
            return train_batch(self, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            watched.append(captured)

    monkeypatch.setattr(loop._Loop, "_train_batch", watch)
    tiny_recipe["train"] |= {"epochs": 4, "precision": "bf16", "trackers": []}
    recipe = Recipe.model_validate(tiny_recipe)

    distill(recipe, RunDir.create(recipe, tmp_path / "run"))

    assert watched.count(True) >= 8


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_an_update_that_is_not_finite_changes_no_weight(tmp_path: Path, setting: str) -> None:
    stopped, before = Masks(spoil="images", at=8), Masks()

    def weights(task: Masks) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in task.model.parameters()]

    with pytest.raises(TrainingError, match="loss is nan at step 7"):
        run(stopped, tiny_source(), tmp_path / "stopped", graph=setting)
    after: list[list[torch.Tensor]] = []
    handle = register_optimizer_step_post_hook(lambda *_: after.append(weights(before)))
    try:
        run(before, tiny_source(), tmp_path / "before", graph=setting)
    finally:
        handle.remove()

    assert all(weight.isfinite().all() for weight in weights(stopped))
    assert distance(weights(stopped), after[6]) < 1e-4


def test_a_pass_that_cannot_be_captured_runs_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Masks(), tiny_source(), tmp_path / "eager", graph="off")

    run(Asks(accumulated_only=False), tiny_source(), tmp_path / "asks")

    assert "without a CUDA graph: it cannot be captured" in capsys.readouterr().err
    curves = [torch.tensor(losses(tmp_path / name)) for name in ("asks", "eager")]
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-3)


def test_a_gpu_whose_memory_runs_out_is_one_error_with_the_batch_size_to_try(
    tmp_path: Path,
) -> None:
    task = Classify()
    task.model = Huge(None)

    with pytest.raises(TrainingError, match="out of memory with train.batch_size") as raised:
        run(task, tiny_source(), tmp_path, batch_size=8)

    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    assert "train.batch_size=4" in raised.value.hint
