"""Measures how well a student predicts the teacher's tokens on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hgkd_edge.cells import counted
from hgkd_edge.confidence import mean_interval
from hgkd_edge.console import warn
from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import ImageSource, held_out_split
from hgkd_edge.data.spread import evenly
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.setup import Setup
from hgkd_edge.distillation.views import draw_visible, on_tokens, teacher_views
from hgkd_edge.engine import Draws
from hgkd_edge.errors import DataError
from hgkd_edge.manifest_record import HeldOut
from hgkd_edge.recipe import Recipe

__all__ = [
    "BetweenImages",
    "held_out_cosine",
    "held_out_if_readable",
    "judged_sites",
    "not_better_than_the_mean",
]

SAMPLE = 4096  # enough images of a split to evaluate predictions
LEAST_CORRELATION = 0.05  # of `between_images`; untrained students have 0.00 to 0.01


@torch.inference_mode()
def held_out_cosine(model: StudentWithLoss, setup: Setup) -> HeldOut | None:
    """Cosine similarity of predicted and true teacher tokens on held-out images.

    Scores masked sites; visible sites if the teacher sees no others; all sites if the recipe masks
    nothing. Masks use the recipe's highest ratio. The trivial baseline predicts the training
    images' mean token of each position.

    Returns:
        The scores; None if nothing was held out, or no features were learned.

    Raises:
        DataError: Images that are decoded on demand cannot be read.
    """
    recipe, parts, teacher = setup.recipe, setup.parts, setup.teacher
    held_out = held_out_split(setup.splits)
    if held_out is None or not recipe.loss.feature_weight:
        return None
    model.eval()
    device = next(model.parameters()).device
    draws = Draws.same_each_time(recipe.seed, device)
    places = parts.token_grid[0] * parts.token_grid[1]  # without the whole-image row
    mean_token = _mean_target(setup, device)[:places].to(device)  # [N, D]
    only_visible = recipe.teacher.view == "visible"
    ratio = recipe.mask.highest_ratio
    sites = judged_sites(recipe)
    ours, trivial, gains, between = [], [], [], BetweenImages()
    for photos in _sample(setup.splits[held_out]):
        images = setup.splits[held_out].images[photos].to(device)
        view = center_view(images, size=recipe.data.size)
        visible = draw_visible(draws, len(view), parts, ratio)
        tokens = on_tokens(visible, parts)
        targets = teacher.targets(view, tokens if only_visible else None)[:, :places]
        predicted = model.student(normalize(view, model.mean, model.std), visible)[0]
        judged = ~tokens if sites == "masked" else tokens  # [B, N]
        mine = F.cosine_similarity(predicted, targets, dim=-1)  # [B, N]
        means = F.cosine_similarity(mean_token.expand_as(targets), targets, dim=-1)
        between.add(predicted, targets, judged)
        ours.append(mine[judged])
        trivial.append(means[judged])
        gains.append(((mine - means) * judged).sum(dim=1) / judged.sum(dim=1))  # [B]
    return HeldOut(
        student=torch.cat(ours).mean().item(),
        mean_token=torch.cat(trivial).mean().item(),
        gain_ci95=mean_interval(torch.cat(gains).tolist()),
        between_images=between.correlation(),
        sites=sites,
        photos=min(SAMPLE, len(setup.splits[held_out])),
    )


def judged_sites(recipe: Recipe) -> str:
    """The tokens that a student is scored on: `masked`, `visible` or `all`."""
    if "visible" in (recipe.teacher.view, recipe.loss.where):
        return "visible"
    return "masked" if recipe.mask.highest_ratio else "all"


def held_out_if_readable(model: StudentWithLoss, setup: Setup) -> HeldOut | None:
    """Score after training: unreadable images skip the score, but do not fail the run."""
    try:
        return held_out_cosine(model, setup)
    except DataError as error:
        warn(f"no held-out score: {error}")
        return None


def not_better_than_the_mean(held_out: HeldOut) -> str:
    """One line of warning if the student knows no more than what all images have in common; or ''.

    Where the mean token fits held-out images badly, an untrained student can be nearer to them: the
    correlation of what differs between images decides then.
    """
    low, high = held_out.gain_bounds
    if low <= 0:
        return (
            f"the student predicts teacher features no better than the mean token: cosine "
            f"{held_out.student:.3f} against {held_out.mean_token:.3f}, difference "
            f"{low:.3f} to {high:.3f} (95 % interval over {counted(held_out.photos, 'image')})"
        )
    if held_out.between_images < LEAST_CORRELATION:
        return (
            "the student predicts nothing of what differs between images: correlation "
            f"{held_out.between_images:.2f} (an untrained one has 0)"
        )
    return ""


def _mean_target(setup: Setup, device: torch.device) -> Tensor:
    """The mean over the training images of each row of the targets, float32 [R, D]."""
    batches, cache = _sample(setup.source), setup.cache
    if cache is not None:  # spares the teacher's passes
        first_views = (cache.views(each, torch.zeros(len(each)))[1] for each in batches)
        sums = torch.stack([targets.sum(dim=0, dtype=torch.float32) for targets in first_views])
        return sums.sum(dim=0) / min(SAMPLE, len(setup.source))
    images = (setup.source.images[each] for each in batches)
    draws = Draws.same_each_time(setup.recipe.seed, device)
    return setup.teacher.moments(teacher_views(images, draws, setup.parts, setup.recipe))[0]


def _sample(source: ImageSource) -> tuple[Tensor, ...]:
    """Indices of at most `SAMPLE` evenly spaced images, in batches."""
    return torch.tensor(evenly(len(source), SAMPLE), dtype=torch.int64).split(256)


class BetweenImages:
    """Correlation over images of predicted and true tokens at the same place, all channels pooled.

    What all images have in common does not count: predicting the mean token of every position gives
    0, whatever its cosine. Positions are weighted by their variance.
    """

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0

    def add(self, predicted: Tensor, true: Tensor, judged: Tensor) -> None:
        """Add predicted and true tokens, float [B, N, D] each, and a mask of those that count."""
        weights = judged[..., None].double()
        ones, a, b = torch.ones_like(true), predicted.double(), true.double()
        terms = (ones, a, b, a * a, b * b, a * b)
        self.sums = self.sums + torch.stack([(weights * term).sum(dim=0) for term in terms])

    def correlation(self) -> float:
        """From -1 to 1; 0 where nothing varies."""
        assert isinstance(self.sums, Tensor)
        count, a, b, aa, bb, ab = self.sums  # [N, D] each
        count = count.clamp(min=1)
        varied = ((aa - a * a / count).sum() * (bb - b * b / count).sum()).clamp(min=0).sqrt()
        return ((ab - a * b / count).sum() / varied.clamp(min=1e-12)).item()
