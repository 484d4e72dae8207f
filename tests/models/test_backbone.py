from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from hgkd_edge.errors import ConversionError, RecipeError, RunError
from hgkd_edge.models.backbone import (
    BackboneSpec,
    create_features,
    freeze_unused,
    load_embedding_net,
    load_features,
    require_plain_form,
    save_backbone,
)
from hgkd_edge.sparse import densify, sparsify


def spec(name: str, stem_stride: int = 4, **args: object) -> BackboneSpec:
    return BackboneSpec(name, stem_stride, (64, 96), (0.5,) * 3, (0.25,) * 3, dict(args))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"channels": [16, 32, 48, 64]}),
        ("resnet50", {"channels": [24, 32, 48, 64], "layers": [2, 1, 1, 1]}),
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
    ],
)
def test_a_densified_backbone_loads_strictly_into_the_plain_timm_model(
    name: str, args: dict[str, object], tmp_path: Path
) -> None:
    encoder = sparsify(create_features(name, args=args), backend="tiles")

    save_backbone(densify(encoder), spec(name, **args), tmp_path / "b.safetensors")

    model = timm.create_model(name, num_classes=0, **args)
    model.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    features, _ = load_features(tmp_path / "b.safetensors")
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        mine = densify(encoder).eval()(images)
        for a, b in zip(mine, features(images), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("stem_stride", "deepest"), [(4, 32), (2, 16), (1, 8)])
def test_the_stem_stride_changes_resolution_but_no_weight(stem_stride: int, deepest: int) -> None:
    features = create_features("resnet18", stem_stride=stem_stride)
    plain = timm.create_model("resnet18", features_only=True)

    maps = features(torch.rand(1, 3, 64, 64))

    reductions = features.feature_info.reduction()
    assert reductions[-1] == deepest
    assert [64 // m.shape[-1] for m in maps] == reductions
    shapes = {k: v.shape for k, v in features.state_dict().items()}
    assert shapes == {k: v.shape for k, v in plain.state_dict().items()}


def test_the_file_alone_makes_the_same_network_again(tmp_path: Path) -> None:
    made = spec("resnet18", 2, channels=[8, 16, 24, 32])
    features = create_features("resnet18", stem_stride=2, args=made.args).eval()
    save_backbone(features, made, tmp_path / "b.safetensors")

    network = load_embedding_net(tmp_path / "b.safetensors")

    images = torch.rand(2, 3, 64, 96)
    assert network.spec == made
    with torch.inference_mode():
        assert torch.equal(network(images), features(images)[-1].mean((2, 3)))


def test_maps_finer_than_needed_are_dropped() -> None:
    assert create_features("resnet18", min_stride=16).feature_info.reduction() == [16, 32]


@pytest.mark.parametrize(
    ("name", "stem_stride", "expected"),
    [
        ("resnet81", 4, "did you mean 'resnet"),
        ("vit_tiny_patch16_224", 4, "not convolutional"),
        ("mobilenetv3_small_050", 2, "no plain ResNet stem"),
    ],
)
def test_a_student_that_cannot_be_is_refused_with_a_fix(
    name: str, stem_stride: int, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        create_features(name, stem_stride=stem_stride)


def test_arguments_that_timm_refuses_are_named() -> None:
    with pytest.raises(RecipeError, match="chanels"):
        create_features("resnet18", args={"chanels": [1]})


@pytest.mark.parametrize("name", ["dpn48b", "efficientvit_b0", "hrnet_w18_small", "convnext_atto"])
def test_every_weight_has_its_place_in_the_plain_model(name: str) -> None:
    require_plain_form(create_features(name), name, {})


def test_a_weight_without_a_place_in_the_plain_model_is_named() -> None:
    features = create_features("resnet18")
    features.new_part = torch.nn.Linear(2, 2)

    with pytest.raises(ConversionError, match=r"'new_part.weight' has no place.*another student"):
        require_plain_form(features, "resnet18", {})


def test_weights_that_no_map_depends_on_are_frozen() -> None:
    features = create_features("hrnet_w18_small", min_stride=16)

    freeze_unused(features)

    sum(m.sum() for m in features(torch.rand(2, 3, 64, 64))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in features.parameters())
    assert not all(p.requires_grad for p in features.parameters())


def test_a_foreign_file_is_no_backbone(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"something else")

    with pytest.raises(RunError, match="not a backbone"):
        load_features(tmp_path / "b.safetensors")
