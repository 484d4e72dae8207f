"""Pictures of what a student predicts on held-out images, saved in the run for its report.

Of each image five panels: the image, its visible patches, the teacher's features, the student's
prediction of them, and their cosine similarity. The directions of features are shown by three
principal components as red, green and blue (as in DINOv2, arXiv 2304.07193). The student's
prediction uses the teacher's components and scale, so equal colors are equal directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import held_out_split
from hgkd_edge.data.spread import evenly
from hgkd_edge.distillation.held_out import judged_sites
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.setup import Setup
from hgkd_edge.distillation.views import draw_visible, on_tokens
from hgkd_edge.engine import Draws
from hgkd_edge.files import atomic_write, write_json
from hgkd_edge.models.decoder import upsample_mask

__all__ = ["preview_panels", "save_previews"]

IMAGES = 6
LONGEST_SIDE = 256  # of a panel in pixels
HIDDEN = 0.5  # gray of masked patches and of tokens without a target


def save_previews(model: StudentWithLoss, setup: Setup, folder: Path) -> None:
    """Write the panels of a few images, and `previews.json`, which describes them.

    Nothing is written if the recipe learns no features.

    Args:
        model: The trained student.
        setup: The setup that it was trained with.
        folder: Made if it does not exist.

    Raises:
        DataError: Images that are decoded on demand cannot be read.
    """
    if not setup.recipe.loss.feature_weight:
        return
    panels, cosines, split = preview_panels(model, setup)
    _write(panels, folder, setup.recipe.data.size)
    ratio, sites = setup.recipe.mask.highest_ratio, judged_sites(setup.recipe)
    about = {"split": split, "mask_ratio": ratio, "sites": sites}
    write_json(folder / "previews.json", {**about, "cosine": cosines})


@torch.inference_mode()
def preview_panels(
    model: StudentWithLoss, setup: Setup
) -> tuple[dict[str, Tensor], list[float], str]:
    """The panels of a few images by name, float [B, 3, rows, columns] in [0, 1].

    Returns:
        The panels, each image's mean cosine at the sites that are scored, and the images' split.

    Raises:
        DataError: Images that are decoded on demand cannot be read.
    """
    recipe, parts, teacher = setup.recipe, setup.parts, setup.teacher
    split = held_out_split(setup.splits) or "train"
    source, ratio = setup.splits[split], recipe.mask.highest_ratio
    chosen = torch.tensor(evenly(len(source), IMAGES), dtype=torch.int64)
    model.eval()
    device = next(model.parameters()).device
    draws = Draws.same_each_time(recipe.seed, device)
    view = center_view(source.images[chosen].to(device), size=recipe.data.size)  # [B, 3, H, W]
    visible = draw_visible(draws, len(view), parts, ratio)  # [B, h, w]
    tokens = on_tokens(visible, parts)  # [B, N]
    known = tokens if recipe.teacher.view == "visible" else torch.ones_like(tokens)
    rows, columns = parts.token_grid
    wanted = teacher.targets(view, None if known.all() else known)[:, : rows * columns].float()
    found = model.student(normalize(view, model.mean, model.std), visible)[0].float()
    cosine = F.cosine_similarity(found, wanted, dim=-1)  # [B, N]
    colors = _as_colors(wanted, found, known)
    shown = upsample_mask(visible, recipe.data.size)[:, None]  # [B, 1, H, W]
    maps = {"teacher": colors[0], "student": colors[1], "cosine": _heat(cosine)}
    panels = {
        "image": view,
        "visible": torch.where(shown, view, HIDDEN),
        **{
            name: torch.where(known[..., None], each, HIDDEN)
            .unflatten(1, (rows, columns))
            .movedim(-1, 1)
            for name, each in maps.items()
        },
    }
    judged = ~tokens if judged_sites(recipe) == "masked" else tokens  # [B, N]
    means = (cosine * judged).sum(dim=1) / judged.sum(dim=1)
    return panels, means.tolist(), split


def _as_colors(wanted: Tensor, found: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Teacher's and student's tokens [B, N, D] as colors in [0, 1], float [B, N, 3]."""
    wanted, found = (F.normalize(each, dim=-1) for each in (wanted, found))  # as cosine does
    tokens = wanted[known]  # [m, D]
    center = tokens.mean(dim=0)
    basis = torch.linalg.svd(tokens - center, full_matrices=False).Vh[:3].T  # [D, up to 3]
    basis = F.pad(basis, (0, 3 - basis.shape[1]))
    low, high = torch.quantile((tokens - center) @ basis, torch.tensor([0.02, 0.98]).to(tokens), 0)
    spread = (high - low).clamp(min=1e-6)
    teacher, student = (
        (((each - center) @ basis - low) / spread).clamp(0, 1) for each in (wanted, found)
    )
    return teacher, student


def _heat(cosine: Tensor) -> Tensor:
    """Cosines as colors of the map `viridis`, from 0 (and below) to 1: float [..., 3]."""
    colors = colormaps["viridis"](cosine.clamp(0, 1).cpu().numpy())[..., :3]
    return torch.from_numpy(colors).to(cosine)


def _write(panels: Mapping[str, Tensor], folder: Path, size: tuple[int, int]) -> None:
    """Write panels [B, 3, rows, columns] in [0, 1] as `<number>-<name>.webp`, all of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    shrink = min(1.0, LONGEST_SIDE / max(size))
    height, width = (max(1, round(side * shrink)) for side in size)
    for name, batch in panels.items():
        pixels = (batch * 255).round().byte().movedim(1, -1).cpu().numpy()  # [B, rows, columns, 3]
        smooth = name in ("image", "visible")
        for number, each in enumerate(pixels):
            picture = Image.fromarray(np.ascontiguousarray(each)).resize(
                (width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
            )
            with atomic_write(folder / f"{number}-{name}.webp") as temporary:
                picture.save(temporary, format="webp", lossless=not smooth, quality=85)
