"""Every family the issue of convolutional timm backbones asks for, one model each.

In float64 an error of meaning cannot hide behind rounding, nor rounding pass for an error: a wrong
neighbour or a wrong mean shows at 1e-2, rounding at 1e-12.
"""

from __future__ import annotations

import copy

import pytest
import torch

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse import densify, sparsify
from tests.sparse.helpers import assert_same_step, gap, network, pair, patch_of, random_visible

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
    "groupnorm": "resnet26t",
    "hrnet": "hrnet_w18_small",
}


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_family_equals_plain_and_masked(name):
    model = network(name, torch.float64)
    p = patch_of(model)
    images = torch.rand(2, 3, 2 * p, 3 * p, dtype=torch.float64)
    visible = random_visible(2, 2, 3)
    tiles, masked = (sparsify(copy.deepcopy(model), b, check=False) for b in ("tiles", "masked"))

    assert_same_step(tiles, masked, images, visible, bound=1e-6)

    everything = torch.ones(2, 2, 3, dtype=torch.bool)
    with torch.no_grad():
        ours, plain = sparsify(model.eval(), check=False)(images, everything), model(images)
    for a, b in zip(ours, plain, strict=True):
        assert gap(a, b) < 1e-7
    assert list(densify(tiles).state_dict()) == list(model.state_dict())


def test_stochastic_depth_drops_whole_images_not_tiles():
    model = network("resnet18", torch.float64, drop_path_rate=0.9)
    tiles, masked = pair(model)
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
