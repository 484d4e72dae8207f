"""The content of `manifest.json`: what a run was made from, where, and what it left."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PlainSerializer

from hgkd_edge.records import Record, RunRecord
from hgkd_edge.score_records import Interval

__all__ = [
    "Artifact",
    "Circumstances",
    "Distilled",
    "Hardware",
    "HeldOut",
    "HeldOutOrNone",
    "ManifestRecord",
    "NetworkOrigin",
    "QuantizationAware",
    "SplitRecord",
]

Reason = tuple[str, str]  # a file's name, and what is wrong with it
MOST_LISTED = 1000  # files in one list: a manifest is read and written often


class NetworkOrigin(Record):
    """Where a network's initial weights come from.

    `file` and its `sha256` are set for weights from a file, `license` where the publisher of the
    weights states one.
    """

    RENAMED: ClassVar[dict[str, str]] = {"licence": "license"}

    name: str = ""
    weights: str = ""
    file: str | None = None
    sha256: str | None = None
    license: str | None = None


class SplitRecord(Record):
    """The images of a split: how many, which, and those that are skipped or damaged.

    `skipped` and `noted` list at most `MOST_LISTED` of them, `more_skipped` and `more_noted` are
    the numbers of the rest. `decided` holds what settings with the value `auto` resolved to, by
    key.
    """

    photos: int
    fingerprint: str
    skipped: list[Reason] = Field(default_factory=list)
    more_skipped: int = 0
    noted: list[Reason] = Field(default_factory=list)
    more_noted: int = 0
    decided: dict[str, object] = Field(default_factory=dict)
    classes: list[str] = Field(default_factory=list)

    @property
    def skipped_count(self) -> int:
        """Number of skipped files and annotations, listed or not."""
        return len(self.skipped) + self.more_skipped

    def shorten(self) -> None:
        """Cut lists that are too long."""
        for name in ("skipped", "noted"):
            listed, more = getattr(self, name), f"more_{name}"
            if (rest := len(listed) - MOST_LISTED) > 0:
                setattr(self, name, listed[:MOST_LISTED])
                setattr(self, more, max(rest, getattr(self, more)))


class Hardware(Record):
    """The machine of a training; `gpu` is None for a training on the CPU."""

    machine: str
    threads: int
    gpu: str | None = None


class Circumstances(Record):
    """Versions, revision, seed, machine and images of a training."""

    versions: dict[str, str] = Field(default_factory=dict)
    git_revision: str | None = None
    seed: int | None = None
    precision: str | None = None
    hardware: Hardware | None = None
    data: dict[str, SplitRecord] = Field(default_factory=dict)


def _none_if_unbounded(interval: Any) -> Any:
    """Earlier versions wrote [-Infinity, Infinity], which is not JSON."""
    return None if interval in ([-math.inf, math.inf], (-math.inf, math.inf)) else interval


class HeldOut(Record):
    """How well a student predicts the teacher's tokens on held-out images.

    Earlier versions wrote `student`, `mean_token` and `photos` only.

    Attributes:
        student: Mean cosine of predicted and true tokens.
        mean_token: That of the trivial baseline, the training images' mean token of each position.
        gain_ci95: 95 % interval of their difference, over images; None for a single image.
        between_images: See `distillation.held_out.BetweenImages`.
        sites: The tokens that are scored: `masked`, `visible` or `all`.
        photos: Number of images.
    """

    student: float
    mean_token: float
    gain_ci95: Annotated[Interval | None, BeforeValidator(_none_if_unbounded)] = None
    between_images: float = math.nan
    sites: str = ""
    photos: int = 0

    @property
    def gain_bounds(self) -> Interval:
        """The interval of the difference, unbounded where there is none."""
        return self.gain_ci95 or (-math.inf, math.inf)


# None if nothing was held out, or its images cannot be read: {} in JSON.
HeldOutOrNone = Annotated[
    HeldOut | None,
    BeforeValidator(lambda found: found or None),
    PlainSerializer(lambda found: found.to_dict() if found is not None else {}),
]


class Distilled(Record):
    """What a distillation left."""

    held_out: HeldOutOrNone = None
    warnings: list[str] = Field(default_factory=list)


class QuantizationAware(Record):
    """The library of a quantization-aware training, and the float model that it started from."""

    library: str
    model: str
    model_sha256: str


class Artifact(Record):
    """A file of a run: its sha256, and the names of the files that it was made from."""

    sha256: str
    made_from: list[str] = Field(default_factory=list)


class ManifestRecord(Circumstances, RunRecord):
    """Where a run comes from; the circumstances are those of its distillation.

    `artifacts` are by name: the path in the run's folder.
    """

    RENAMED: ClassVar[dict[str, str]] = {"artefacts": "artifacts"}

    teacher: NetworkOrigin | None = None
    student: NetworkOrigin | None = None
    artifacts: dict[str, Artifact] = Field(default_factory=dict)
    result: Distilled | None = None
    finetune: Circumstances | None = None
    quantization_aware: QuantizationAware | None = None

    @property
    def held_out(self) -> HeldOut | None:
        """The scores of a finished distillation, if images were held out."""
        return self.result.held_out if self.result is not None else None

    @property
    def labeled_data(self) -> dict[str, SplitRecord]:
        """The images of the fine-tuning by split; empty before one."""
        return self.finetune.data if self.finetune is not None else {}
