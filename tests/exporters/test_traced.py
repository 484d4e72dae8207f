"""What is rewritten in a traced network: PyTorch's own way gives the same graph and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from exporters import onnx_export
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


def test_pytorchs_own_way_gives_the_same_graph(
    tmp_path: Path, decomposed: list[ExportedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = settled("mobilenetv3_small_050")
    ours, pytorchs = tmp_path / "ours.onnx", tmp_path / "pytorchs.onnx"
    export_onnx(model, ours, input_size=(3, SIZE, SIZE))
    assert not decomposed

    monkeypatch.setattr(onnx_export, "in_onnx_operators", lambda program: None)
    export_onnx(model, pytorchs, input_size=(3, SIZE, SIZE))

    assert len(decomposed) == 1
    assert operators(ours) == operators(pytorchs)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def leave_to_pytorch(how: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Operators on images [B, 3, 8, 8] and maps [B, 8, 8, 8] that PyTorch has to decompose."""
    unlike = torch.ones(8, 1, 1, dtype=torch.float64)
    return {
        "a part": lambda _, maps: (torch.relu_(maps[:, :4]), maps)[1],
        "a view": lambda _, maps: (torch.relu_(maps.flatten(2)), maps)[1],
        "what has a view": lambda _, maps: (maps.flatten(2), torch.relu_(maps))[0],
        "through dropout": lambda _, maps: torch.relu_(F.dropout(maps, training=False)),
        "the input": lambda images, _: (torch.relu_(images), images)[1],
        "another type": lambda _, maps: maps.mul_(unlike),
        "a comparison": lambda _, maps: maps.gt_(0.0),
        "a power": lambda _, maps: maps.pow_(2),
        "whole channels dropped": lambda _, maps: F.dropout2d(maps, training=False),
        "uneven parts": lambda _, maps: torch.cat(maps.chunk(3, dim=1)[::-1], dim=1),
        "a negative start": lambda _, maps: maps.narrow(1, -3, 3),
        "a moved axis": lambda _, maps: maps.movedim(1, -1),
        "a cast": lambda _, maps: maps.to(torch.float64).to(torch.float32),
        "statistics of the batch": lambda _, maps: F.batch_norm(maps, None, None, training=True),
    }[how]


class Network(nn.Module):
    """A convolution, and what `then` makes of its input and output."""

    def __init__(self, then: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.then, self.conv = then, nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.then(images, self.conv(images))


def check_numbers(model: nn.Module, path: Path) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    written = export_onnx(model, path, input_size=(3, 8, 8))
    (got,) = OrtSession(written.path).infer({"images": images.numpy()}).values()
    wanted = model(images.clone()).detach().numpy()
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "then",
    [
        lambda _, maps: maps + torch.relu_(maps),
        lambda _, maps: torch.relu_(maps.add_(1.0)),
        lambda _, maps: F.silu(maps.add_(maps * 2.0), inplace=True),
    ],
    ids=["by its name", "twice", "by itself"],
)
def test_what_is_overwritten_in_place_gives_the_same_numbers(
    then: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)

    check_numbers(Network(then).eval(), tmp_path / "file.onnx")


@pytest.mark.parametrize(
    "how",
    [
        "a part",
        "a view",
        "what has a view",
        "through dropout",
        "the input",
        "another type",
        "a comparison",
        "a power",
        "whole channels dropped",
        "uneven parts",
        "a negative start",
        "a moved axis",
        "a cast",
        "statistics of the batch",
    ],
)
def test_what_is_not_known_is_left_to_pytorch(
    how: str, tmp_path: Path, decomposed: list[ExportedProgram]
) -> None:
    torch.manual_seed(0)

    check_numbers(Network(leave_to_pytorch(how)).eval(), tmp_path / "file.onnx")

    assert decomposed
