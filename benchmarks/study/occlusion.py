"""How well a backbone recognizes partly hidden images.

    python -m benchmarks.study.occlusion study/runs/cifar10.arms.h-gkd.0 ... [--areas 0 0.25 0.5]

k-NN top-1 on images of one split, against whole training images, with a square of each set to the
mean color. The square differs between images and is the same for every run. Squares lie anywhere,
not on the mask grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.knn_and_probe import embed, knn_top1
from hgkd_edge.models.backbone import EmbeddingNet, load_embedding_net
from hgkd_edge.rundir import RunDir


@torch.inference_mode()
def embed_hidden(network: EmbeddingNet, photos: ImageSource, area: float) -> tuple[Tensor, Tensor]:
    """Embeddings float [n, C], with a square of `area` hidden in every image, and labels."""
    spec = network.spec
    hide = v2.RandomErasing(p=1, scale=(area, area), ratio=(1, 1), value=list(spec.mean))
    torch.manual_seed(0)
    parts, labels = [], []
    for batch, truth in photos.batches(128):
        view = center_view(batch, size=spec.size)
        if area:
            view = torch.stack([hide(each) for each in view])
        parts.append(network(normalize(view, spec.mean, spec.std)).float())
        labels.append(truth)
    return torch.cat(parts), torch.cat(labels)


def score(run: RunDir, split: str, areas: list[float]) -> list[float]:
    """k-NN top-1 on the images of `split` for each hidden share."""
    splits = open_splits(run.recipe().data)
    if split not in splits:
        raise SystemExit(f"{run.path}: no split '{split}'; it has {', '.join(splits)}")
    train, photos = splits["train"], splits[split]
    network = load_embedding_net(run.backbone_file)
    known = embed(network, train)
    count = len(train.classes)
    return [knn_top1(*known, *embed_hidden(network, photos, area), classes=count) for area in areas]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, images with labels")
    parser.add_argument("--areas", nargs="+", type=float, default=[0.0, 0.1, 0.25, 0.5])
    parser.add_argument("--split", default="val", help="its images are scored")
    arguments = parser.parse_args()
    print("".join(f"{area:>7.0%}" for area in arguments.areas), " hidden")
    for folder in arguments.runs:
        scores = score(RunDir(folder), arguments.split, arguments.areas)
        figures = "".join(f"{100 * score:>7.1f}" for score in scores)
        print(f"{figures}  {folder.name}", flush=True)


if __name__ == "__main__":
    main()
