"""What is rewritten in a traced network: PyTorch's own way gives the same graph and numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from exporters import onnx_export
from exporters._traced import _KNOWN, in_onnx_operators
from exporters.onnx_export import export_onnx
from exporters.runtimes.ort import OrtSession
from tests import converted

from .conftest import SIZE, settled


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The programs that PyTorch decomposed. Conversions of other tests are not reused."""
    monkeypatch.setattr(onnx_export, "_convert", converted._convert)
    programs, original = [], ExportedProgram.run_decompositions

    def spy(program: ExportedProgram, *arguments: object) -> ExportedProgram:
        programs.append(program)
        return original(program, *arguments)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", spy)
    return programs


class EveryOperator(nn.Module):
    """All operators that skip PyTorch's decomposition, in one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.group_norm, self.bare = nn.GroupNorm(4, 8), nn.GroupNorm(2, 8, affine=False)
        self.conv, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.layer_norm = nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.scale, self.head = nn.Parameter(torch.rand(8)), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = F.relu(self.norm(self.conv(images)), inplace=True)
        maps = F.hardtanh(self.other(maps).add_(maps), 0.0, 6.0, inplace=True)
        maps = F.hardswish(self.other(maps), inplace=True) * F.hardsigmoid(maps)
        maps = F.silu(self.other(maps), inplace=True) * torch.sigmoid(maps)
        last = F.gelu(self.layer_norm(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        maps = torch.cat([last * self.scale.reshape(1, -1, 1, 1), maps], dim=1)
        return self.classes(maps), self.boxes(self.bare(self.group_norm(last))), self.enlarged(last)

    def classes(self, maps: Tensor) -> Tensor:
        maps = F.avg_pool2d(F.max_pool2d(maps, 2), 2)
        return self.head(F.dropout(F.adaptive_avg_pool2d(maps, 1).flatten(1), training=False))

    def enlarged(self, maps: Tensor) -> Tensor:
        """Every form of upsampling."""
        sizes: list[dict[str, Any]] = [{"size": (48, 48)}, {"scale_factor": 3}]
        ways: list[dict[str, Any]] = [
            {"mode": "nearest"},
            {"mode": "bilinear", "align_corners": False},
            {"mode": "bilinear", "align_corners": True},
        ]
        return torch.cat([F.interpolate(maps, **size, **way) for size in sizes for way in ways], 1)

    def boxes(self, maps: Tensor) -> Tensor:
        """Operators of a detector, with negative axes, `alpha`, both and single bounds, numbers."""
        rows, columns = (torch.arange(side, device=maps.device) * 8.0 for side in (16, 16))
        square = columns.expand(16, 16), rows.view(-1, 1).expand(-1, 16)
        points = torch.stack(square, dim=-1).flatten(0, 1)
        sides = maps.view(maps.shape[0], 4, 2, -1).permute(0, 3, 1, 2).to(maps.dtype)
        first, second, third, last = (sides.select(-2, i) for i in (0, 1, 2, -1))
        start = points - (-first).exp()
        end = torch.sub(points, last.abs().clamp(0.5, 4.0), alpha=-2)
        score = (1 + second.clamp(max=0).exp()).sqrt() / 2 - third.clamp(min=-1)
        limit = torch.stack([maps.new_full((), 128), maps.new_full((), 96)])
        return torch.cat([start.minimum(limit), end.minimum(limit) / score], dim=-1)


def test_pytorchs_own_way_gives_the_same_graph(
    tmp_path: Path, decomposed: list[ExportedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = EveryOperator().eval()
    ours, pytorchs = tmp_path / "ours.onnx", tmp_path / "pytorchs.onnx"
    export_onnx(model, ours, input_size=(3, 16, 16))
    assert not decomposed

    monkeypatch.setattr(onnx_export, "in_onnx_operators", lambda program: None)
    export_onnx(model, pytorchs, input_size=(3, 16, 16))

    assert len(decomposed) == 1
    assert operators(ours) == operators(pytorchs)


def test_every_known_operator_is_compared() -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    model, images = EveryOperator().eval(), torch.rand(2, 3, 16, 16)
    program = torch.export.export(model, (images,), dynamic_shapes=free)

    in_onnx_operators(program)

    found = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert found == _KNOWN


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_usual_networks_are_not_traced_again(name: str) -> None:
    program = torch.export.export(settled(name, shallow=True), (torch.rand(2, 3, SIZE, SIZE),))

    in_onnx_operators(program)

    assert program.run_decompositions() is program


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


ZEROS, ONES = torch.zeros(8), torch.ones(8)
UNLIKE = torch.ones(8, 1, 1, dtype=torch.float64)
Then = Callable[[Tensor, Tensor], Tensor]
# What becomes of images [B, 3, 8, 8] and maps [B, 8, 8, 8].
REWRITTEN: dict[str, Then] = {
    "by its name": lambda _, maps: maps + torch.relu_(maps),
    "twice": lambda _, maps: torch.relu_(maps.add_(1.0)),
    "bounds of two types": lambda _, maps: maps.clamp(-0.5, 1),
    "a cast at the end": lambda _, maps: maps.to(torch.float32),
    "a norm at the end": lambda _, maps: F.batch_norm(maps, ZEROS, ONES),
    "a cast to its own type": lambda _, maps: torch.relu_(maps.to(torch.float32)),
}
LEFT_TO_PYTORCH: dict[str, Then] = {
    "by itself": lambda _, maps: F.silu(maps.add_(maps * 2.0), inplace=True),
    "a part": lambda _, maps: (torch.relu_(maps[:, :4]), maps)[1],
    "a view": lambda _, maps: (torch.relu_(maps.flatten(2)), maps)[1],
    "what has a view": lambda _, maps: (maps.flatten(2), torch.relu_(maps))[0],
    "through dropout": lambda _, maps: torch.relu_(F.dropout(maps, training=False)),
    "the input": lambda images, _: (torch.relu_(images), images)[1],
    "another type": lambda _, maps: maps.add_(UNLIKE),
    "another operator": lambda _, maps: maps.mul_(UNLIKE),
    "a comparison": lambda _, maps: maps.gt_(0.0),
    "a power": lambda _, maps: maps.pow_(2),
    "whole channels dropped": lambda _, maps: F.dropout2d(maps, training=False),
    "uneven parts": lambda _, maps: torch.cat(maps.chunk(3, dim=1)[::-1], dim=1),
    "a negative start": lambda _, maps: maps.narrow(1, -3, 3),
    "a moved axis": lambda _, maps: maps.movedim(1, -1),
    "a bound by the shape": lambda images, maps: maps.clamp(max=images.shape[0] / 8),
    "a size as bound": lambda images, maps: maps.clamp(max=images.shape[0]),
    "a cast": lambda _, maps: maps.to(torch.float64).to(torch.float32),
    "statistics of the batch": lambda _, maps: F.batch_norm(maps, None, None, training=True),
}


class Networks(nn.Module):
    """A convolution for each case, and what the case makes of its input and output."""

    def __init__(self, cases: dict[str, Then]) -> None:
        super().__init__()
        self.cases = list(cases.values())
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in cases)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.cases, self.convs, strict=True)
        return tuple(then(images, conv(images)) for then, conv in pairs)


@pytest.mark.parametrize("how", [*REWRITTEN, *LEFT_TO_PYTORCH])
def test_what_is_rewritten_is_not_traced_again_and_all_else_is(how: str) -> None:
    model = Networks({how: (REWRITTEN | LEFT_TO_PYTORCH)[how]}).eval()
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (torch.rand(2, 3, 8, 8),), dynamic_shapes=free)

    in_onnx_operators(program)

    assert (program.run_decompositions() is program) == (how in REWRITTEN)


CHANGED = {"the input"}  # this case overwrites it for all that follow


@pytest.mark.parametrize(
    "names", [REWRITTEN, LEFT_TO_PYTORCH.keys() - CHANGED, CHANGED], ids=["ours", "left", "input"]
)
def test_the_file_gives_pytorchs_numbers_whichever_way_it_is_converted(
    names: Collection[str], tmp_path: Path, decomposed: list[ExportedProgram]
) -> None:
    torch.manual_seed(0)
    cases = {name: (REWRITTEN | LEFT_TO_PYTORCH)[name] for name in sorted(names)}
    model = Networks(cases).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    written = export_onnx(model, tmp_path / "file.onnx", input_size=(3, 8, 8))

    found = OrtSession(written.path).infer({"images": images.numpy()}).values()
    wanted = [values.detach().numpy() for values in model(images.clone())]
    assert bool(decomposed) == (names is not REWRITTEN)
    for name, got, values in zip(cases, found, wanted, strict=True):
        assert got.dtype == values.dtype, name
        np.testing.assert_allclose(got, values, atol=1e-6, err_msg=name)
