"""Checkpoints from elsewhere: every usual layout loads the right network, or is refused."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hgkd_edge.distillation.teacher_weights import load_vit_weights
from hgkd_edge.errors import RecipeError

State = dict[str, Tensor]
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48}


def vit(seed: int = 0, name: str = "vit_tiny_patch16_224", **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 0, **SMALL, **more}).eval()


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def loaded(content: Any, tmp_path: Path, network: nn.Module | None = None) -> Tensor:
    """A weight of a network after loading."""
    network = network or vit(seed=9)
    torch.save(content, tmp_path / "w.pth")
    load_vit_weights(network, tmp_path / "w.pth")
    return network.state_dict()["blocks.1.mlp.fc1.weight"]


RIGHT, OTHER = vit(1).state_dict(), vit(2).state_dict()
HEAD = {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
LAYOUTS: dict[str, Callable[[], Any]] = {
    "timm classifier": lambda: {**RIGHT, **HEAD},
    "timm training": lambda: {"epoch": 1, "state_dict": OTHER, "state_dict_ema": RIGHT},
    "MAE pre-training": lambda: {
        "model": {
            **RIGHT,
            "mask_token": torch.zeros(1, 1, 32),
            "decoder_pos_embed": torch.zeros(1, 17, 32),
            "decoder_embed.weight": torch.zeros(32, 48),
            "decoder_blocks.0.norm1.weight": torch.zeros(32),
            "decoder_pred.bias": torch.zeros(3),
        }
    },
    "DINO": lambda: {
        "student": prefixed("module.backbone.", OTHER) | {"module.head.mlp.0.bias": torch.zeros(1)},
        "teacher": prefixed("backbone.", RIGHT) | {"head.mlp.0.bias": torch.zeros(1)},
        "epoch": 100,
    },
    "DINOv2 training": lambda: {
        "model": prefixed("student.backbone.", OTHER)
        | prefixed("teacher.backbone.", RIGHT)
        | {"teacher.dino_head.mlp.0.bias": torch.zeros(1)}
    },
    "iBOT": lambda: {"state_dict": {**RIGHT, "mask_token": torch.zeros(1, 48)}},
    "Lightning": lambda: {
        "state_dict": {**prefixed("model.", RIGHT), "criterion.weight": torch.zeros(3)}
    },
    "Lightning, any attribute": lambda: {"state_dict": prefixed("net.vit.", RIGHT)},
    "DDP": lambda: prefixed("module.", RIGHT),
    "DDP, compiled": lambda: {"state_dict": prefixed("_orig_mod.module.", RIGHT)},
    "averaged as 'ema'": lambda: {"model": OTHER, "ema": RIGHT},
    "averaged as 'model_ema'": lambda: {"model_ema": RIGHT, "model": OTHER},
    "averaged by prefix": lambda: {**prefixed("model.", OTHER), **prefixed("model_ema.", RIGHT)},
    "averaged, wrapped": lambda: {"ema": {"module": RIGHT, "decay": 0.99}, "model": OTHER},
    "AveragedModel": lambda: {**prefixed("module.", RIGHT), "n_averaged": torch.tensor(3)},
    "the same twice": lambda: {"model": RIGHT, "backup": RIGHT},
    "a small other network": lambda: {"model": RIGHT, "teacher": vit(3, depth=1).state_dict()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_right_network_of_every_usual_layout_is_loaded(layout: str, tmp_path: Path) -> None:
    weight = loaded(LAYOUTS[layout](), tmp_path)

    assert torch.equal(weight, RIGHT["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("order", [("model", "teacher"), ("teacher", "model")])
@pytest.mark.parametrize("nested", [True, False])
def test_two_networks_that_fit_are_refused_in_either_order(
    order: tuple[str, str], nested: bool, tmp_path: Path
) -> None:
    states = {"model": OTHER, "teacher": RIGHT}
    content: Any = {name: states[name] for name in order}
    if not nested:
        content = {k: v for n in order for k, v in prefixed(f"{n}.", states[n]).items()}

    with pytest.raises(RecipeError, match="holds 2 networks that fit.*'model'.*hint: save the one"):
        loaded(content, tmp_path)


def test_the_chosen_network_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded({"model": OTHER, "ema": RIGHT}, tmp_path)

    assert "w.pth holds several networks; loaded 'ema'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"init_values": 0.1}, r"blocks\.\d\.ls1\.gamma"),
        ({"depth": 3}, r"blocks\.2\."),
        ({"qk_norm": True}, r"blocks\.\d\.attn\.k_norm"),
        ({"reg_tokens": 4}, "reg_token|pos_embed"),
        ({"pre_norm": True}, "norm_pre|patch_embed"),
    ],
)
def test_trained_weights_without_a_place_are_refused(
    more: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=named):
        loaded(vit(**more).state_dict(), tmp_path)


def test_positions_and_tables_of_beit_load(tmp_path: Path) -> None:
    args = {"name": "beit_base_patch16_224", "num_heads": 3}
    stored = vit(1, **args)
    network = vit(2, **args)
    content = {
        "model": {
            **stored.state_dict(),
            **HEAD,
            "blocks.0.attn.relative_position_index": torch.zeros(17, 17),
        }
    }

    weight = loaded(content, tmp_path, network)

    assert torch.equal(weight, stored.state_dict()["blocks.1.mlp.fc1.weight"])


def test_a_layout_of_another_library_names_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "hf.safetensors"
    hugging_face = {
        "vit.embeddings.cls_token": torch.zeros(1, 1, 48),
        "vit.encoder.layer.0.layernorm_before.weight": torch.zeros(48),
    }
    save_file(hugging_face, file)

    with pytest.raises(RecipeError, match=r"weights missing, such as 'blocks.*must describe"):
        load_vit_weights(vit(), file)


SETTINGS = {
    "namespace": argparse.Namespace(lr=1e-3, output=pathlib.PosixPath("runs")),
    "path": pathlib.PurePosixPath("/data"),
    "scalar": np.float64(91.5),
    "array": np.arange(3),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_and_scores_next_to_the_weights_do_no_harm(kind: str, tmp_path: Path) -> None:
    weight = loaded({"model": RIGHT, "args": SETTINGS[kind]}, tmp_path)

    assert torch.equal(weight, RIGHT["blocks.1.mlp.fc1.weight"])


NEVER_STORED = {
    "half": torch.zeros(1, dtype=torch.float16).expand(10**10),
    "float": torch.zeros(1).expand(10**6, 10**6),
    "one of ours": torch.zeros(1, dtype=torch.float16).expand(192 * 4, 48 * 10**6),
}


@pytest.mark.parametrize("kind", NEVER_STORED)
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"optimizer": {"state": [{"x": (x,)}]}}])
def test_a_tensor_that_the_file_does_not_store_is_refused_before_it_is_copied(
    kind: str, nest: Callable[[Any], Any], tmp_path: Path
) -> None:
    content = {"model": RIGHT, "extra": nest(NEVER_STORED[kind])}

    with pytest.raises(RecipeError, match=r"holds a tensor \[.*\] that it does not store"):
        loaded(content, tmp_path)

    assert (tmp_path / "w.pth").stat().st_size < 2_000_000


def test_a_small_view_of_fewer_values_does_no_harm(tmp_path: Path) -> None:
    mask = torch.ones(1, 1, dtype=torch.bool).expand(512, 512)

    assert torch.equal(
        loaded({**RIGHT, "head.mask": mask}, tmp_path), RIGHT["blocks.1.mlp.fc1.weight"]
    )


NO_NUMBERS = {
    "meta": torch.zeros(48, device="meta"),
    "complex": torch.zeros(48, dtype=torch.complex64),
    "sparse": torch.zeros(48).to_sparse(),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
@pytest.mark.filterwarnings("ignore:Sparse|Validating")
def test_a_weight_that_is_no_array_of_numbers_is_missing(kind: str, tmp_path: Path) -> None:
    content = {**RIGHT, "norm.bias": NO_NUMBERS[kind]}

    with pytest.raises(RecipeError, match=r"1 of \d+ weights missing, such as 'norm.bias'"):
        loaded(content, tmp_path)
    assert loaded({**RIGHT, "head.freqs": NO_NUMBERS[kind]}, tmp_path) is not None


def test_a_file_of_countless_networks_is_refused_soon(tmp_path: Path) -> None:
    small = {"patch_embed.proj.weight": torch.zeros(1)}
    many = {f"a.{i}.patch_embed.proj.weight": torch.zeros(1) for i in range(3000)}

    for content in ({f"n{i}": small for i in range(3000)}, many):
        with pytest.raises(RecipeError, match="holds more than 1000 networks"):
            loaded(content, tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pipe_is_no_checkpoint(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"w{suffix}")

    with pytest.raises(RecipeError, match="is a named pipe, no checkpoint"):
        load_vit_weights(vit(), tmp_path / f"w{suffix}")


class Settings(argparse.Namespace):
    """A type of the user's, whose code must not run."""

    ran = False

    def __setstate__(self, state: Any) -> None:
        type(self).ran = True


def test_only_named_types_are_skipped_and_none_of_their_code_runs(tmp_path: Path) -> None:
    content = {"model": RIGHT, "args": Settings()}

    with pytest.raises(RecipeError, match="Settings.*could run code"):
        loaded(content, tmp_path)

    assert not Settings.ran
