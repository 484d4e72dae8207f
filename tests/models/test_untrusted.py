"""Loaded files may choose an architecture and nothing else: attacks through the commands."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from hgkd_edge.cli import main
from hgkd_edge.errors import RecipeError, RunError, UserError
from hgkd_edge.models.backbone import create_timm_model, load_features
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir

NARROW: dict[str, Any] = {"channels": [8, 16, 24, 32]}
FETCH = {"url": "http://192.0.2.1/w.pth", "hf_hub_id": None, "source": "url"}


class Payload:
    """Pickles to a call: as in a hostile checkpoint."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Arguments that load a pickle or open a connection; afterwards, that neither happened."""
    connections: list[Any] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _, address: connections.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: connections.append(a) or [])
    torch.save(Payload(tmp_path / "owned"), tmp_path / "evil.pth")
    file = str(tmp_path / "evil.pth")
    yield {
        "a checkpoint": {"checkpoint_path": file},
        "an address": {"pretrained": True, "pretrained_cfg_overlay": FETCH},
        "a file": {"pretrained": True, "pretrained_cfg_overlay": {"file": file}},
        "a configuration": {"pretrained_cfg": FETCH},
        "a folder": {"cache_dir": str(tmp_path)},
        "a nested address": {"block_args": {"url": FETCH["url"]}},
        "a word that is a path": {"act_layer": "../" + file},
    }
    assert not (tmp_path / "owned").exists()
    assert not connections


ATTACKS = ["a checkpoint", "an address", "a file", "a configuration", "a folder"]
NESTED = ["a nested address", "a word that is a path"]


def hgkd(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command that runs in this process, where connections are seen."""
    monkeypatch.setattr(sys, "argv", ["hgkd-edge", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("section", ["student", "teacher"])
@pytest.mark.parametrize("command", [("recipes", "validate"), ("distill",)], ids=" ".join)
def test_a_recipe_chooses_no_files_or_addresses(
    attack: str,
    section: str,
    command: tuple[str, ...],
    hostile: dict[str, Any],
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_recipe[section]["args"] = {**tiny_recipe[section]["args"], **hostile[attack]}
    Path("r.yaml").write_text(yaml.safe_dump(tiny_recipe))

    code = hgkd(monkeypatch, *command, "r.yaml")

    assert code == 2
    assert f"{section}.args." in capsys.readouterr().err


def stored(file: Path, *, name: str = "resnet18", args: dict[str, Any], key: str = "") -> Path:
    """A file in our format with metadata written by a stranger."""
    spec = {
        "name": name,
        "stem_stride": 4,
        "size": [64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "args": {**NARROW, **args},
    }
    model = {"task": "classify", "classes": ["a", "b"], "backbone": spec}
    classes = 2 if key else 0
    state = timm.create_model("resnet18", num_classes=classes, **NARROW).state_dict()
    metadata = {"hgkd_edge.model": json.dumps(model), "hgkd_edge.backbone": json.dumps(spec)}
    save_file(state, file, metadata=metadata)
    return file


@pytest.mark.parametrize("attack", [*ATTACKS, *NESTED])
def test_a_model_file_chooses_no_files_or_addresses(
    attack: str,
    hostile: dict[str, Any],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = stored(tmp_path / "model.safetensors", args=hostile[attack], key="model")
    photo = next((photos / "test").rglob("*.webp"))

    code = hgkd(monkeypatch, "predict", str(model), str(photo))

    assert code == 2
    assert "student.args" in capsys.readouterr().err


@pytest.mark.parametrize("attack", ["a checkpoint", "an address"])
@pytest.mark.parametrize(
    "command",
    [("evaluate", "run"), ("finetune", "run", "--task", "classify", "--data")],
    ids=["evaluate", "finetune"],
)
def test_a_run_folder_chooses_no_files_or_addresses(
    attack: str,
    command: tuple[str, ...],
    hostile: dict[str, Any],
    tiny_recipe: dict[str, Any],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")
    stored(run.backbone_file, args=hostile[attack])
    data = [str(photos)] if command[-1] == "--data" else []

    code = hgkd(monkeypatch, *command, *data)

    assert code == 2
    assert "student.args" in capsys.readouterr().err


@pytest.mark.parametrize("attack", [*ATTACKS, *NESTED])
def test_a_backbone_file_chooses_no_files_or_addresses(
    attack: str, hostile: dict[str, Any], tmp_path: Path
) -> None:
    file = stored(tmp_path / "backbone.safetensors", args=hostile[attack])

    with pytest.raises(RecipeError, match=r"student\.args"):
        load_features(file)


@pytest.mark.parametrize(
    "name",
    ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp", "resnet18.x:/tmp/y",
     "../resnet18", "resnet18\n", "https://192.0.2.1/resnet18"],
)  # fmt: skip
def test_a_name_is_no_address(name: str, hostile: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not the name of a timm model"):
        create_timm_model("student.name", name, {})
    with pytest.raises(UserError, match="not the name of a timm model"):
        load_features(stored(tmp_path / "backbone.safetensors", name=name, args={}))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 1_000_000_000}),
        ("vit_tiny_patch16_224", {"depth": 10_000}),
        ("vit_tiny_patch16_224", {"embed_dim": 15_000, "num_heads": 1}),
        ("resnet18", {"channels": [16_384] * 4}),
        ("resnet18", {"layers": [3_400, 1, 1, 1]}),
        ("resnet18", {"channels": [[[[[[[8]]]]]]]}),
        ("resnet18", {"channels": [8] * 2_000}),
        ("resnet18", {"channels": float("nan")}),
    ],
)
def test_arguments_that_would_fill_the_memory_are_one_clear_error(
    name: str, args: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=r"student\.args"):
        create_timm_model("student.name", name, args)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"channels": [8, 16, 24, 32], "drop_path_rate": 0.1, "act_layer": "silu"}),
        ("resnet18", {"layers": [1, 1, 1, 1], "stem_type": "deep"}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
        ("mobilenetv3_small_100", {"drop_rate": 0.1}),
        ("vit_tiny_patch16_224", {"depth": 1, "init_values": 0.1, "qk_norm": True}),
        ("vit_small_patch16_dinov3", {"depth": 1}),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}),
    ],
)
def test_architectures_are_still_free(name: str, args: dict[str, Any]) -> None:
    assert isinstance(create_timm_model("student.name", name, args), torch.nn.Module)


def test_counting_weights_keeps_the_random_state() -> None:
    torch.manual_seed(0)
    wanted = timm.create_model("resnet18", **NARROW).state_dict()
    torch.manual_seed(0)

    found = create_timm_model("student.name", "resnet18", NARROW).state_dict()

    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": [10**9, 10**9]},
        {"size": [64]},
        {"std": [0, 0, 0]},
        {"mean": ["a", "b", "c"]},
        {"stem_stride": 3},
        {"name": ["resnet18"]},
        {"args": []},
        {"more": 1},
    ],
)
def test_a_description_that_describes_nothing_is_refused(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    spec = {"name": "resnet18", "stem_stride": 4, "size": [64, 64], "mean": [0.5] * 3,
            "std": [0.5] * 3, "args": {}}  # fmt: skip
    file = tmp_path / "backbone.safetensors"
    metadata = {"hgkd_edge.backbone": json.dumps({**spec, **wrong})}
    save_file({"w": torch.zeros(1)}, file, metadata=metadata)

    with pytest.raises(RunError, match="is not a backbone"):
        load_features(file)


@pytest.mark.parametrize("change", ["left over", "missing", "another shape"])
def test_a_backbone_file_holds_all_weights_of_its_network_and_no_others(
    change: str, tmp_path: Path
) -> None:
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    if change == "left over":
        state["layer1.2.conv1.weight"] = torch.zeros(1)
    elif change == "missing":
        del state["layer1.1.conv1.weight"]
    else:
        state["layer1.1.conv1.weight"] = torch.zeros(3)
    file = stored(tmp_path / "backbone.safetensors", args={})
    spec = {"name": "resnet18", "stem_stride": 4, "size": [64, 64], "mean": [0.5] * 3,
            "std": [0.5] * 3, "args": {}}  # fmt: skip
    save_file(state, file, metadata={"hgkd_edge.backbone": json.dumps(spec)})

    with pytest.raises(RunError, match=r"'layer1\.\d\.conv1\.weight' is"):
        load_features(file)
