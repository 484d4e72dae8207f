"""What is rewritten in a traced network: PyTorch's own way gives the same graph and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from exporters import onnx_export
from exporters._traced import in_onnx_operators
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
    export_onnx(model, pytorchs, input_size=(3, SIZE, SIZE), metadata={"by": "PyTorch"})

    assert len(decomposed) == 1
    assert operators(ours) == operators(pytorchs)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


class Overwritten(nn.Module):
    """A network with an in-place operator. What it overwrites may be seen elsewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        if self.how == "by its name":
            return maps + torch.relu_(maps)
        if self.how == "twice":
            torch.relu_(maps.add_(1.0))
        elif self.how == "a part":
            torch.relu_(maps[:, :4])
        elif self.how == "a view":
            torch.relu_(maps.flatten(2))
        elif self.how == "what has a view":
            view = maps.flatten(2)
            torch.relu_(maps)
            return view
        elif self.how == "through dropout":  # in inference it returns what it is given
            torch.relu_(nn.functional.dropout(maps, training=self.training))
        return maps


@pytest.mark.parametrize(
    ("how", "rewritten"),
    [
        ("by its name", True),
        ("twice", True),
        ("a part", False),
        ("a view", False),
        ("what has a view", False),
        ("through dropout", False),
    ],
)
def test_what_is_overwritten_in_place_gives_the_same_numbers(
    how: str, rewritten: bool, tmp_path: Path, decomposed: list[ExportedProgram]
) -> None:
    torch.manual_seed(0)
    model = Overwritten(how).eval()
    images = torch.randn(2, 3, 8, 8)

    written = export_onnx(model, tmp_path / "file.onnx", input_size=(3, 8, 8))

    assert not (rewritten and decomposed)
    (got,) = OrtSession(written.path).infer({"images": images.numpy()}).values()
    np.testing.assert_allclose(got, model(images).detach().numpy(), atol=1e-6)


def test_batchnorm_of_the_batch_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    program = torch.export.export(model, (torch.rand(2, 3, 4, 4),))

    in_onnx_operators(program)

    targets = [str(node.target) for node in program.graph.nodes]
    assert "aten.batch_norm.default" in targets
