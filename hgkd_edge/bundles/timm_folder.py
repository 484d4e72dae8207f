"""`timm`: a folder that `timm.create_model("local-dir:...", pretrained=True)` loads.

The same folder can be pushed to the Hugging Face Hub as a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from exporters import ExportError, VerificationFailed, runtimes
from exporters.verify import verify
from hgkd_edge.bundles.source import Bundle, BundleSource
from hgkd_edge.exportable import Exportable
from hgkd_edge.models.backbone import BackboneSpec, EmbeddingNet, read_backbone
from hgkd_edge.models.meta import on_meta
from hgkd_edge.tasks.metadata import EMBED

__all__ = ["BUNDLE"]

PROOF_IMAGES = 8


def _check(subject: Exportable) -> None:
    """Reject a changed stem stride: timm has no argument for it."""
    spec = subject.spec
    if spec.stem_stride != 4:
        raise ExportError(
            f"--bundle timm: the network has stem_stride {spec.stem_stride}, and timm makes "
            f"'{spec.name}' with a stride of 4 only, which gives different outputs",
            hint="distill with --set student.stem_stride=4, or choose another bundle",
        )


def _write(source: BundleSource, folder: Path) -> Path:
    subject, spec = source.subject, source.subject.spec
    network = subject.network
    state = (
        read_backbone(subject.weights)[0]
        if isinstance(network, EmbeddingNet)
        else {key: value.detach().cpu() for key, value in network.state_dict().items()}
    )
    classes = () if subject.task == EMBED else subject.classes
    config = _config(spec, classes)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {key: value.contiguous() for key, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _prove(source, folder)
    source.write_readme("timm.md", folder, spec=spec, classes=classes, threshold=subject.threshold)
    return subject.weights


def _config(spec: BackboneSpec, classes: tuple[str, ...]) -> dict[str, Any]:
    """The configuration that timm writes for a model on the Hub, with the same keys."""
    settings: dict[str, Any] = {**spec.args, "num_classes": len(classes)}
    with on_meta():
        plain: Any = timm.create_model(spec.name, **settings)
    published = plain.pretrained_cfg
    return {
        "architecture": spec.name.partition(".")[0],
        "num_classes": len(classes),
        "num_features": plain.num_features,
        **({"label_names": list(classes)} if classes else {}),
        **({"model_args": spec.args} if spec.args else {}),
        "pretrained_cfg": {
            "tag": "hgkd_edge",
            "custom_load": False,
            "input_size": [3, *spec.size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(classes),
            "first_conv": published.get("first_conv"),
            "classifier": published.get("classifier"),
        },
    }


def _prove(source: BundleSource, folder: Path) -> None:
    """Load the folder through timm, and compare it with the original network."""
    subject = source.subject
    loaded: Any = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    network = _Pooled(loaded) if subject.task == EMBED else loaded
    images: np.ndarray = subject.images(subject.unseen, PROOF_IMAGES)
    names = list(subject.output_names)
    ours = runtimes.open(subject.network, names=names).run
    proof = verify(ours, runtimes.open(network, names=names).run, images, precision="fp32")
    if not proof.passed:
        raise VerificationFailed(
            f"--bundle timm: the folder's outputs differ from the run's: {proof.describe()}"
        )


class _Pooled(nn.Module):
    """A timm model's last feature map, averaged: the embedding of a bare backbone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.model.forward_features(images)
        return maps.mean(dim=(2, 3))


BUNDLE = Bundle(
    tasks=("classify", "multilabel", "embed"), flavor="tensorrt", check=_check, write=_write
)
