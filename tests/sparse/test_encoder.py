"""The encoder's guarantees to its callers."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from timm.layers import Format
from torch import nn

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse import densify, proof, sparsify
from hgkd_edge.sparse.encoder import BACKENDS
from hgkd_edge.sparse.proof import TOLERANCE, _same
from tests.sparse.helpers import (
    WIDTHS,
    assert_same_step,
    gap,
    narrow,
    network,
    pair,
    random_visible,
    shallow,
)

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize(
    # Where rounding moves a value across ReLU's kink, its gradient jumps by a whole unit: in
    # float32 tiles and masked then differ by up to 4e-2 in ResNet-50, and both from float64.
    # So the ReLU network is compared in float64, and float32 with a smooth activation.
    ("dtype", "activation", "bound"),
    [(torch.float32, nn.SiLU, 1e-4), (torch.float64, nn.ReLU, 1e-9)],
    ids=["float32", "float64"],
)
def test_training_step_on_tiles_equals_the_masked_reference(name, share, dtype, activation, bound):
    tiles, masked = pair(shallow(narrow(name, dtype, act_layer=activation)), check=False)
    images = torch.rand(3, 3, 96, 160, generator=torch.Generator().manual_seed(5), dtype=dtype)

    assert_same_step(tiles, masked, images, random_visible(3, 3, 5, share), bound)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_float32_step_agrees_at_timms_own_initialization(name, share):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, channels=WIDTHS)
    tiles, masked = pair(shallow(model), check=False)
    images = torch.rand(3, 3, 96, 160, generator=torch.Generator().manual_seed(5))

    assert_same_step(tiles, masked, images, random_visible(3, 3, 5, share), bound=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_nothing_masked_equals_the_plain_network(name):
    model = narrow(name).eval()

    encoder, everything = sparsify(copy.deepcopy(model)), torch.ones(2, 2, 3, dtype=torch.bool)

    for maps in (encoder(IMAGES, everything), encoder.on_sites(IMAGES, everything)):
        for ours, plain in zip(maps, model(IMAGES), strict=True):
            assert gap(ours, plain) < 1e-5


@pytest.mark.parametrize("backend", ["tiles", "masked"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_known_number_of_visible_patches_gives_the_same_maps(backend, count):
    visible = torch.rand(2, 6, generator=torch.Generator().manual_seed(count)).argsort(1) < count
    visible = visible.view(2, 2, 3)
    counted, known = (sparsify(narrow("resnet18"), backend, check=False) for _ in range(2))

    maps, again = counted(IMAGES, visible), known(IMAGES, visible, count)
    for results in (maps, again):
        sum(m.square().sum() for m in results).backward()

    assert all(map(torch.equal, maps, again))
    for one, other in zip(counted.parameters(), known.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("claimed", [1, 3, 6])
def test_a_wrong_number_of_visible_patches_is_an_error(claimed):
    visible = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]]).bool()

    with pytest.raises(RuntimeError, match=f"not every image has {claimed} visible patches"):
        sparsify(narrow("resnet18"), check=False)(IMAGES, visible, claimed)


def test_nothing_masked_runs_the_plain_layers(monkeypatch):
    encoder = sparsify(narrow("resnet18"))
    monkeypatch.delitem(BACKENDS, "tiles")

    assert encoder(IMAGES, torch.ones(2, 2, 3, dtype=torch.bool))[-1].shape == (2, 64, 2, 3)
    with pytest.raises(KeyError):
        encoder(IMAGES, random_visible(2, 2, 3))


@pytest.mark.parametrize("backend", ["tiles", "masked"])
def test_masked_pixels_never_influence_visible_features(backend):
    encoder, visible = sparsify(narrow("resnet18"), backend=backend), random_visible(2, 2, 3)
    hidden = ~visible.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1)

    before = encoder(IMAGES, visible)
    after = encoder(IMAGES + 100 * torch.rand_like(IMAGES) * hidden, visible)

    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["tiles", "masked"])
def test_maps_have_the_promised_shapes_and_are_zero_at_masked_sites(backend):
    encoder, visible = sparsify(narrow("resnet18"), backend=backend), random_visible(2, 2, 3)

    maps = encoder(IMAGES, visible)

    for m, channels, s in zip(maps, encoder.channels, encoder.reductions, strict=True):
        assert list(m.shape) == [2, channels, 64 // s, 96 // s]
        t = encoder.patch // s
        sites = visible.repeat_interleave(t, 1).repeat_interleave(t, 2).unsqueeze(1)
        assert not (m * ~sites).any()
        assert (m * sites).any()


class ChannelsLast(nn.Module):
    """A feature network whose maps are `[B, H, W, C]`, as some of timm's are."""

    output_fmt = Format.NHWC

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.feature_info = inner, inner.feature_info

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [m.permute(0, 2, 3, 1) for m in self.inner(x)]


@pytest.mark.parametrize("backend", ["tiles", "masked"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("share", [0.5, 2.0], ids=["masked", "nothing masked"])
def test_modules_given_for_each_map_run_before_it_is_put_on_the_grid(
    backend: str, channels_last: bool, share: float
) -> None:
    encoder = sparsify(
        ChannelsLast(narrow("resnet18")) if channels_last else narrow("resnet18"), backend
    )
    visible = random_visible(2, 2, 3, share=share)
    heads = [nn.Conv2d(c, 5, kernel_size=1, bias=False) for c in encoder.channels]

    ours = encoder(IMAGES, visible, each=heads)
    theirs = [head(m) for head, m in zip(heads, encoder(IMAGES, visible), strict=True)]

    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_batch_of_one_with_one_visible_patch():
    visible = torch.zeros(1, 2, 3, dtype=torch.bool)
    visible[0, 1, 2] = True
    tiles, masked = pair(narrow("resnet18").eval(), check=False)

    assert_same_step(tiles, masked, IMAGES[:1], visible, bound=1e-4)


def test_an_image_without_a_visible_patch_gives_zeros_and_disturbs_nothing():
    visible = random_visible(2, 2, 3)
    visible[1] = False
    images = IMAGES.double()

    both = sparsify(network("seresnet33ts", torch.float64, width_factor=0.5))(images, visible)
    alone = sparsify(network("seresnet33ts", torch.float64, width_factor=0.5))(
        images[:1], visible[:1]
    )

    for b, a in zip(both, alone, strict=True):
        assert not b[1].any()
        assert gap(b[:1], a) < 1e-10


def test_state_dict_has_the_keys_of_the_plain_feature_network():
    model = narrow("resnet50")
    plain = timm.create_model("resnet50", features_only=True, channels=WIDTHS)

    encoder = sparsify(model)

    assert list(encoder.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in encoder.named_parameters()] == [n for n, _ in plain.named_parameters()]
    encoder.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(model.conv1.weight, plain.conv1.weight)


def test_densify_is_bit_exact_and_loads_strictly_into_timm():
    encoder = sparsify(narrow("resnet50"))
    encoder(IMAGES, random_visible(2, 2, 3))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}

    dense = densify(encoder)

    assert not any(type(m).__module__.startswith("hgkd_edge") for m in dense.modules())
    fresh = timm.create_model("resnet50", features_only=True, channels=WIDTHS)
    fresh.load_state_dict(dense.state_dict(), strict=True)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in before.items())


def test_parameters_are_shared_not_copied():
    model = narrow("resnet18")

    encoder = sparsify(model)

    assert [id(p) for p in encoder.parameters()] == [id(p) for p in model.parameters()]


def test_a_deep_copy_lives_its_own_life():
    encoder = sparsify(narrow("resnet18"))
    visible = random_visible(2, 2, 3)
    twin = copy.deepcopy(encoder)

    with torch.no_grad():
        for p in encoder.parameters():
            p.zero_()
    maps = twin(IMAGES, visible)

    assert maps[-1].any()
    assert not encoder(IMAGES, visible)[-1].any()
    assert densify(twin) is not densify(encoder)
    assert next(twin.parameters()) is next(densify(twin).parameters())


def test_two_encoders_with_different_masks_do_not_disturb_each_other():
    one, two = sparsify(narrow("resnet18")), sparsify(narrow("resnet34"))
    seen, other = random_visible(2, 2, 3, seed=1), random_visible(2, 2, 3, seed=2)

    alone = one(IMAGES, seen)
    two(IMAGES, other)
    again = one(IMAGES, seen)

    for a, b in zip(alone, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_full_precision(dtype):
    tiles = sparsify(narrow("resnet18").eval())
    visible = random_visible(2, 2, 3)

    with torch.autocast("cpu", dtype):
        low = tiles(IMAGES, visible)
    full = tiles(IMAGES, visible)

    for a, b in zip(low, full, strict=True):
        assert gap(a.float(), b) < 0.05
    sum(m.float().mean() for m in low).backward()
    assert all(torch.isfinite(p.grad).all() for p in tiles.parameters())


def test_inference_mode_and_train_eval():
    encoder, visible = sparsify(narrow("resnet18")), random_visible(2, 2, 3)

    encoder.eval()
    with torch.inference_mode():
        calm = encoder(IMAGES, visible)

    assert not densify(encoder).training
    assert torch.equal(calm[-1], encoder(IMAGES, visible)[-1])


def test_sync_batchnorm_converts_and_comes_back():
    encoder, visible = sparsify(narrow("resnet18")), random_visible(2, 2, 3)
    plain = encoder(IMAGES, visible)

    encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)

    assert any(isinstance(m, nn.SyncBatchNorm) for m in densify(encoder).modules())
    assert gap(encoder(IMAGES, visible)[-1], plain[-1]) < 1e-5


def test_encoder_survives_torch_save():
    encoder, visible = sparsify(narrow("resnet18")).eval(), random_visible(2, 2, 3)
    file = io.BytesIO()

    torch.save(encoder, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)

    assert torch.equal(again(IMAGES, visible)[-1], encoder(IMAGES, visible)[-1])


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_smaller_stem_stride_makes_smaller_patches(stem_stride):
    model = narrow("resnet18")
    model.maxpool = nn.Identity()
    if stem_stride == 1:
        model.conv1.stride = (1, 1)
    for entry in model.feature_info.info:
        entry["reduction"] = max(1, entry["reduction"] * stem_stride // 4)
    model.feature_info.info[0]["reduction"] = stem_stride
    tiles, masked = pair(model, check=False)

    assert tiles.patch == 8 * stem_stride
    assert_same_step(
        tiles, masked, IMAGES, random_visible(2, 64 // tiles.patch, 96 // tiles.patch), 1e-4
    )


def test_wrong_shapes_and_empty_masks_are_refused_with_the_fix():
    encoder = sparsify(narrow("resnet18"))

    with pytest.raises(ConversionError, match="multiple of 32"):
        encoder(torch.rand(1, 3, 60, 64), torch.ones(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ConversionError, match=r"images need \[1, 2, 2\]"):
        encoder(torch.rand(1, 3, 64, 64), torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(ConversionError, match="must be bool"):
        encoder(torch.rand(1, 3, 64, 64), torch.ones(1, 2, 2))
    with pytest.raises(ConversionError, match="no patch of the batch is visible"):
        encoder(torch.rand(1, 3, 64, 64), torch.zeros(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ConversionError, match="unknown backend"):
        sparsify(narrow("resnet18"), backend="cuda")
    with pytest.raises(ConversionError, match="features_only=True"):
        sparsify(timm.create_model("resnet18"))


def test_a_caller_that_only_infers_may_convert_too() -> None:
    model = timm.create_model("resnet18", features_only=True, channels=WIDTHS).eval()

    with torch.inference_mode():
        encoder = sparsify(model)
        maps = encoder(torch.rand(1, 3, 64, 64), torch.ones(1, 2, 2, dtype=torch.bool))

    assert maps[-1].shape == (1, 64, 2, 2)


def test_a_map_that_overflows_proves_nothing_and_hides_no_other() -> None:
    fine, overflowed = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf])
    wrong = fine + 4 * TOLERANCE

    _same([fine, fine], [overflowed, fine * (1 + TOLERANCE / 2)], "the network")
    for broken in (wrong, overflowed, torch.full((2,), torch.nan)):
        with pytest.raises(ConversionError, match="map 1 differs from the network"):
            _same([fine, broken], [overflowed, fine], "the network")


def test_where_float64_leaves_a_doubt_the_check_is_repeated_with_settled_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prove_in = narrow("resnet18"), proof._prove_in
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen = []

    def doubt_twice(dtype, ours, masked):
        seen.append((dtype, ours.network.bn1.running_mean.double(), masked.network.bn1.momentum))
        if len(seen) < 3:
            raise proof._DisagreementError("rounding", hint="")
        prove_in(dtype, ours, masked)

    monkeypatch.setattr(proof, "_prove_in", doubt_twice)

    sparsify(model)

    settled = model.conv1(proof._images(32, torch.device("cpu"), torch.float32)).mean((0, 2, 3))
    assert [dtype for dtype, _, _ in seen] == [torch.float32, torch.float64, torch.float64]
    assert not seen[1][1].any()
    torch.testing.assert_close(seen[2][1], settled.detach().double(), rtol=1e-4, atol=1e-5)
    assert seen[2][2] == model.bn1.momentum == 0.1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_check_draws_no_random_numbers_of_the_caller() -> None:
    model = narrow("resnet18", drop_path_rate=0.5)
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    sparsify(model)

    assert torch.equal(torch.rand(3), expected)
