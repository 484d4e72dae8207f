from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporters import runtimes
from exporters._traced import in_onnx_operators
from exporters.onnx_export import export_onnx
from exporters.openvino_export import export_openvino
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.models.heads import Detector, Pyramid, Segmenter, mean_probability

NARROW = {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}
BACKBONES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet18": ("resnet18", 4, NARROW),
    "stem of stride 2": ("resnet18", 2, NARROW),
    "stem of stride 1": ("resnet18", 1, NARROW),
    "mobilenet": ("mobilenetv3_small_050", 4, {}),
    "convnext": ("convnext_atto", 4, {}),
}


def spec_of(kind: str) -> BackboneSpec:
    name, stem_stride, args = BACKBONES[kind]
    return BackboneSpec(name, stem_stride, (64, 96), (0.5,) * 3, (0.25,) * 3, args)


@pytest.fixture(params=[(64, 96), (72, 104)], ids=["whole strides", "broken strides"])
def images(request: pytest.FixtureRequest) -> Tensor:
    return torch.randn(2, 3, *request.param, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_pixel_gets_logits_whatever_the_backbone(kind: str, images: Tensor) -> None:
    network = Segmenter(spec_of(kind), 5).eval()

    with torch.no_grad():
        logits = network(images)

    assert logits.shape == (2, 5, *images.shape[-2:])


@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, Segmenter) for kind in BACKBONES), ("stem of stride 1", Detector)]
)
def test_conversion_does_not_trace_again(kind: str, head: type[Segmenter] | type[Detector]) -> None:
    example, free = (torch.rand(2, 3, 64, 96),), ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(head(spec_of(kind), 3).eval(), example, dynamic_shapes=free)

    in_onnx_operators(program)

    assert program.run_decompositions() is program


@pytest.mark.parametrize("head", [Segmenter, Detector])
def test_a_file_of_free_height_and_width_answers_as_pytorch_at_other_sizes(
    head: type[Segmenter] | type[Detector], tmp_path: Path
) -> None:
    network = head(spec_of("resnet18"), 3).eval()
    export_onnx(network, tmp_path / "net.onnx", input_size=(3, 128, 192), dynamic_size=True)
    run = runtimes.open(tmp_path / "net.onnx").run

    for size in ((160, 224), (224, 128)):
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = network(images)
        outputs = wanted if isinstance(wanted, tuple) else (wanted,)
        for got, values in zip(run(images.numpy()).values(), outputs, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), values, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", BACKBONES)
def test_boxes_lie_within_the_image_whatever_the_backbone(kind: str, images: Tensor) -> None:
    network = Detector(spec_of(kind), 3).eval()
    height, width = images.shape[-2:]

    with torch.no_grad():
        boxes, scores = network(images)

    assert network.backbone.strides == [8, 16, 32, 64]
    points = sum(-(-height // s) * -(-width // s) for s in network.backbone.strides)
    if kind != "convnext":  # whose stem drops the remainder of an uneven stride
        assert boxes.shape[1] == points
    assert boxes.shape == (2, scores.shape[1], 4)
    assert scores.shape[2] == 3
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_weight_is_used(kind: str) -> None:
    images = torch.randn(2, 3, 64, 96)
    boxes = torch.tensor([[[0.0, 10, 10, 40, 50]], [[1, 5, 5, 90, 60]]])
    segmenter, detector = Segmenter(spec_of(kind), 3), Detector(spec_of(kind), 3)

    segmenter(images).square().mean().backward()
    sum(detector.losses(images, boxes).values()).backward()  # type: ignore[union-attr]

    for network in (segmenter, detector):
        unused = [name for name, p in network.named_parameters() if p.grad is None]
        assert unused == [], "distributed training would wait for its gradient for ever"


def test_the_pyramid_takes_one_map_of_each_stride_and_is_as_wide_as_the_backbone_asks() -> None:
    narrow = Pyramid(spec_of("stem of stride 2"), finest=2)
    wide = Pyramid(BackboneSpec("resnet50", 4, (64, 96), (0.5,) * 3, (0.25,) * 3), finest=4)

    assert narrow.strides == [2, 4, 8, 16]
    assert (narrow.out_channels, wide.out_channels) == (64, 256)


def test_untrained_boxes_are_squares_round_the_middle_of_their_cells() -> None:
    network = Detector(spec_of("resnet18"), 2).eval()
    torch.nn.init.zeros_(network.head.regression_head.bbox_reg.weight)

    boxes, _ = network(torch.zeros(1, 3, 128, 128))

    cells = boxes[0, : 16 * 16].view(16, 16, 4)  # of stride 8; a box reaches 4 strides out
    assert cells[5, 7].tolist() == [60 - 32, 44 - 32, 60 + 32, 44 + 32]


def test_a_detector_learns_one_image_by_heart() -> None:
    torch.manual_seed(0)
    network = Detector(spec_of("resnet18"), 2)
    images = torch.zeros(1, 3, 64, 96)
    images[:, 0, 12:44, 16:48] = 2.0
    images[:, 1, 20:30, 60:90] = 2.0
    truth = torch.tensor([[[0.0, 16, 12, 48, 44], [1, 60, 20, 90, 30]]])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(network.losses(images, truth).values()).backward()  # type: ignore[union-attr]
        optimizer.step()

    with torch.no_grad():
        boxes, scores = network(images)

    for label, x1, y1, x2, y2 in truth[0].tolist():
        best = boxes[0, scores[0, :, int(label)].argmax()]
        assert (best - torch.tensor([x1, y1, x2, y2])).abs().max() < 4
        assert scores[0, :, int(label)].max() > 0.4


class Scores(torch.nn.Module):
    """Two planes of logits -> their mean probability."""

    def forward(self, logits: Tensor) -> Tensor:
        return mean_probability(logits[:, :1], logits[:, 1:2])


@pytest.mark.parametrize("runtime", ["torch", "half", "onnxruntime", "openvino"])
def test_scores_are_exact_to_rounding_at_any_confidence(runtime: str, tmp_path: Path) -> None:
    # A confident background has logits of -30 and below: sqrt of a rounded product fails there.
    side = torch.linspace(-120, 120, 97)
    logits = torch.stack([*torch.meshgrid(side, side, indexing="ij"), side.expand(97, 97)])[None]
    wanted = logits[:, :2].double().sigmoid().prod(dim=1, keepdim=True).sqrt()

    got = scored(runtime, logits, tmp_path)

    error = (got.double() - wanted).abs().max().item()
    assert error < (2e-3 if runtime == "half" else 5e-7)
    assert (got >= 0).all()
    if runtime != "half":  # relative as well: it is what a dead class is compared by
        shown = wanted > 1e-12
        assert ((got.double() - wanted).abs() / wanted)[shown].max() < 1e-5


def scored(runtime: str, logits: Tensor, folder: Path) -> Tensor:
    network = Scores().eval()
    if runtime in ("torch", "half"):
        return network(logits.half() if runtime == "half" else logits)
    export_onnx(network, folder / "net.onnx", input_size=tuple(logits.shape[1:]))
    run = runtimes.open(folder / "net.onnx").run
    if runtime == "openvino":
        pytest.importorskip("openvino")
        export_openvino(folder / "net.onnx", folder / "net.xml", half_weights=False)
        run = runtimes.open(folder / "net.xml").run
    (values,) = run(logits.numpy()).values()
    return torch.from_numpy(values)
