"""The `timm` bundle, loaded by timm itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

from exporters import ExportError
from hgkd_edge.bundles import BundleSource, make_bundle, require_bundle
from hgkd_edge.export import export_run
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import load_exportable
from hgkd_edge.finetune import load_model
from hgkd_edge.models.backbone import load_embedding_net
from hgkd_edge.tasks.answers import load_photo
from tests.bundles.conftest import Deployed
from tests.bundles.helpers import new_run, real_images

BARE = ExportOptions(bundles=("timm",))


def test_timm_loads_the_folder_and_answers_as_the_run_does(
    deployed: Callable[[str], Deployed], photos: Path
) -> None:
    made = deployed("classify")

    model = timm.create_model(f"local-dir:{made.folder('timm')}", pretrained=True).eval()

    network, card = load_model(made.run.model_file)
    config = resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, *card.input.size)
    assert tuple(config["mean"]) == card.input.mean
    assert tuple(config["std"]) == card.input.std
    assert list(model.pretrained_cfg["label_names"]) == list(card.classes)
    transform = create_transform(**config)
    for file in real_images("classify", photos):
        theirs = transform(load_photo(file))[None]
        ours = torch.from_numpy(card.input.array(load_photo(file)))
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(model(theirs), network.eval()(ours), atol=1e-4, rtol=1e-4)


def test_the_upload_is_a_command_of_the_hubs_library(deployed: Callable[[str], Deployed]) -> None:
    readme = (deployed("classify").folder("timm") / "README.md").read_text()

    (command,) = [line for line in readme.splitlines() if " upload " in line]
    program, verb, *_ = command.split()
    assert subprocess.run([Path(sys.executable).with_name(program), verb, "--help"]).returncode == 0


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
        ("resnet18", {"channels": [8, 8, 8, 8]}),
    ],
)
def test_a_bare_backbone_gives_its_embedding(
    name: str, args: dict[str, list[int]], photos: Path, tmp_path: Path
) -> None:
    run = new_run(photos, tmp_path / "run", name, args=args)

    folder = tmp_path / "timm"
    make_bundle(
        "timm", BundleSource(run, load_exportable(run), Path(), Path(), "fp32", BARE), folder
    )

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.from_numpy(
        np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    )
    with torch.no_grad():
        got = model.forward_features(images).mean(dim=(2, 3))
        wanted = load_embedding_net(run.backbone_file)(images)
    assert model.num_classes == 0
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_stem_that_timm_cannot_make_is_refused_before_anything_is_made(
    photos: Path, tmp_path: Path
) -> None:
    run = new_run(photos, tmp_path / "run", stem_stride=2)

    with pytest.raises(ExportError, match="timm makes 'resnet18' with a stride of 4") as caught:
        export_run(run, BARE)

    assert "student.stem_stride=4" in caught.value.hint
    assert not run.export_dir.exists()


@pytest.mark.parametrize("bundle", ["deepstream", "predict", "jetson"])
def test_a_bare_backbone_has_no_answers_to_deploy(
    bundle: str, photos: Path, tmp_path: Path
) -> None:
    run = new_run(photos, tmp_path / "run")

    with pytest.raises(ExportError, match="a bare backbone is not supported") as caught:
        require_bundle(bundle, load_exportable(run))

    assert "hgkd-edge finetune" in caught.value.hint
