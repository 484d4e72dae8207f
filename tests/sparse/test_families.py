"""One model of every required family of convolutional timm backbones.

In float64 logic errors and rounding are clearly separated: a wrong neighbor or a wrong mean shows
at 1e-2, rounding at 1e-12.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from timm.layers import GroupNorm
from timm.models import byobnet, cspnet, efficientnet, vgg

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse import densify, proof, sparsify
from tests.sparse.helpers import (
    assert_same_step,
    distance,
    gap,
    narrow,
    network,
    pair,
    patch_of,
    random_visible,
    shallow,
    smooth,
    step,
)

FAMILIES = {
    "resnet": "resnet18",
    "resnet-d": "resnet26d",
    "resnext": "resnext26ts",
    "seresnet": "seresnet33ts",
    "ecaresnet": "ecaresnet26t",
    "wide_resnet": "wide_resnet50_2",
    "res2net": "res2net50_48w_2s",
    "regnetx": "regnetx_002",
    "regnety": "regnety_002",
    "convnext": "convnext_atto",
    "convnextv2": "convnextv2_atto",
    "mobilenetv2": "mobilenetv2_035",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv4": "mobilenetv4_conv_small_050",
    "efficientnet": "efficientnet_b0",
    "efficientnetv2": "efficientnetv2_rw_t",
    "efficientnet_tf_same": "tf_efficientnet_lite0",
    "efficientnet_lite": "efficientnet_lite0",
    "mnasnet": "mnasnet_small",
    "mobileone": "mobileone_s0",
    "repvgg": "repvgg_a0",
    "vgg_bn": "vgg11_bn",
    "hgnet": "hgnetv2_b0",
    "darknet": "darknet17",
    "cspnet": "cspresnet50d",
    "dla": "dla46x_c",
    "densenet": "densenet121",
    "ghostnet": "ghostnet_050",
    "rexnet": "rexnet_100",
    "groupnorm": "resnet50_gn",
    "hrnet": "hrnet_w18_small",
}
HALF = {"channels": (32, 64, 128, 256)}


def blocks(name: str, **changes: object) -> tuple[object, ...]:
    return tuple(replace(b, c=b.c // 2, **changes) for b in byobnet.model_cfgs[name].blocks)


def stages(name: str, *widths: int) -> object:
    return replace(cspnet.model_cfgs[name].stages, out_chs=widths)


# Half as wide where timm lets us: no rule of the engine depends on the width, and bfloat16 is slow
# on CPUs without its instructions.
SETTINGS: dict[str, dict[str, object]] = {
    "densenet121": {"block_config": (2, 2, 2, 2)},  # its blocks differ in their inputs
    "resnet18": HALF,
    "res2net50_48w_2s": HALF,
    "resnet26d": {**HALF, "stem_width": 16},
    "ecaresnet26t": {**HALF, "stem_width": 16},
    "wide_resnet50_2": {"channels": (24, 48, 96, 192)},
    # As many channels per group as at full width.
    "resnet50_gn": {**HALF, "norm_layer": partial(GroupNorm, num_groups=16)},
    "seresnet33ts": {"width_factor": 0.5},
    # `shallow` finds no equal neighbors in its blocks of two kinds.
    "mobileone_s0": {
        "width_factor": 0.5,
        "blocks": byobnet._mobileone_bcfg(
            d=(2, 2, 2, 1), wf=(0.75, 1.0, 1.0, 2.0), num_conv_branches=4
        ),
    },
    "resnext26ts": {"blocks": blocks("resnext26ts", gs=16)},
    "darknet17": {"stages": stages("darknet17", 32, 64, 128, 256, 512)},
    "cspresnet50d": {"stages": stages("cspresnet50d", 64, 128, 256, 512)},
    "rexnet_100": {"depth_mult": 0.5},
    "vgg11_bn": {"mlp_ratio": 0.01},  # of the head, which a feature network does not have
}


@pytest.fixture(autouse=True)
def half_a_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [width if width == "M" else width // 2 for width in vgg.cfgs["vgg11"]]
    monkeypatch.setitem(vgg.cfgs, "vgg11", layers)


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_family_equals_plain_and_masked(name):
    model = shallow(network(name, torch.float64, **SETTINGS.get(name, {})))
    p = patch_of(model)
    images = torch.rand(2, 3, 2 * p, 3 * p, dtype=torch.float64)
    visible = random_visible(2, 2, 3)
    tiles, masked = pair(model, check=False)

    assert_same_step(tiles, masked, images, visible, bound=1e-6)

    everything = torch.ones(2, 2, 3, dtype=torch.bool)
    with torch.no_grad():
        ours = sparsify(model.eval(), check=False).on_sites(images, everything)
        plain = model(images)
    for a, b in zip(ours, plain, strict=True):
        assert gap(a, b) < 1e-7
    dense = sparsify(model, check=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for key, value in densify(dense).state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_family_agrees_in_float32_and_loses_no_more_in_bfloat16(name):
    """Float32 within 1e-4; bfloat16 as near to float32 as the masked reference in bfloat16 is.

    With smooth activations: where rounding (or the number of threads) moves a value across a kink,
    its gradient jumps by a whole unit. With the nets' own ones gradients are compared in float64.
    """
    torch.manual_seed(0)
    settings = SETTINGS.get(name, {})
    model = timm.create_model(name, features_only=True, **settings)  # initialized as in training
    model = smooth(shallow(model))
    p = patch_of(model)
    images, visible = torch.rand(4, 3, 2 * p, 3 * p), random_visible(4, 2, 3, share=0.7)
    tiles, masked = pair(model, check=False)
    maps, gradients = step(masked, images, visible)

    ours, our_gradients = step(tiles, images, visible)

    for a, b in zip(ours, maps, strict=True):
        assert gap(a, b) < 1e-4
    assert distance(our_gradients, gradients) < 1e-4
    low, low_gradients = step(tiles, images, visible, autocast=True)
    reference, reference_gradients = step(masked, images, visible, autocast=True)
    for a, r, b in zip(low, reference, maps, strict=True):
        assert distance([a], [b]) < 1.2 * distance([r], [b]) + 1e-3
    # At timm's initialization bfloat16 gradients of some nets are all noise, in the reference too.
    bound = 1.5 * distance(reference_gradients, gradients) + 1e-3
    assert distance(low_gradients, gradients) < bound


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_family_with_one_visible_patch_per_image(name):
    model = shallow(network(name, torch.float64, **SETTINGS.get(name, {})))
    p = patch_of(model)
    tiles, masked = pair(model, check=False)
    visible = torch.zeros(3, 2, 1, dtype=torch.bool)
    visible[0, 0] = visible[1, 1] = visible[2, 1] = True

    images = torch.rand(3, 3, 2 * p, p, dtype=torch.float64)
    assert_same_step(tiles, masked, images, visible, bound=1e-6)

    alone, one = images[:1], visible[:1]  # a batch of one, in evaluation: BatchNorm needs no mean
    assert_same_step(tiles.eval(), masked.eval(), alone, one, bound=1e-6)


@pytest.mark.parametrize("backend", ["tiles", "masked"])
def test_batchnorm_in_training_says_that_one_site_is_too_few(backend):
    encoder = sparsify(narrow("resnet18"), backend, check=False)
    visible = torch.zeros(1, 2, 1, dtype=torch.bool)
    visible[0, 0] = True

    with pytest.raises(ConversionError, match="cannot average over the one visible site"):
        encoder(torch.rand(1, 3, 64, 32), visible)


def test_stochastic_depth_drops_whole_images_not_tiles():
    model = narrow("resnet18", torch.float64, drop_path_rate=0.9)
    tiles, masked = pair(model, check=False)
    images = torch.rand(6, 3, 64, 96, dtype=torch.float64)

    assert_same_step(tiles, masked, images, random_visible(6, 2, 3), bound=1e-6)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gcresnext26ts", "module 'stages_0.0.attn' (GlobalContext)"),
        ("edgenext_xx_small", "module 'stages_1.blocks.1'"),
        ("lambda_resnet26t", "self_attn"),
        ("tiny_vit_5m_224", "module "),
    ],
)
def test_what_looks_across_masked_sites_is_refused_by_path(name, path):
    with pytest.raises(ConversionError) as refusal:
        sparsify(network(name))

    assert path in str(refusal.value)


def test_wrong_strides_in_feature_info_are_refused():
    model = network("resnet18")
    model.maxpool = torch.nn.Identity()

    with pytest.raises(ConversionError, match="feature_info says stride"):
        sparsify(model)


def test_a_deep_untrained_net_that_amplifies_rounding_is_compared_in_float64_and_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    # As deep as efficientnetv2_rw_m, and less wide.
    depth = {"depth_multiplier": (1.2,) * 4 + (1.6,) * 2, "channel_multiplier": 0.25}
    model = efficientnet._gen_efficientnetv2_s(
        "efficientnetv2_rw_m", rw=True, features_only=True, **depth
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compared, prove_in = [], proof._prove_in
    monkeypatch.setattr(
        proof, "_prove_in", lambda dtype, *of: (compared.append(dtype), prove_in(dtype, *of))
    )

    sparsify(model)

    assert compared == [torch.float32, torch.float64]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
