"""The rows of a comparison, in groups that can be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Circumstances", "Comparison", "Group", "Row"]


@dataclass(frozen=True)
class Row:
    """One file in one runtime on one device.

    Attributes:
        run: Folder of its run.
        file: Name of the file.
        runner: As `bench` names it; `torch` for the weights.
        threads: Number of threads, where one was set.
        precision: Of the computation.
        exported: Of the file: a device may build an engine of another precision from it.
        sha256: Digest of the network: score, times and size are all of this one.
        size_mb: All its files, MiB.
        score: Points, 0 to 100; None if not computed.
        scored_by: Command, runtime and machine of the score.
        score_elsewhere: The score was computed in another runtime, or on another machine, than the
            times; the outputs were verified against the file's before they were timed.
        cosine: Agreement with the fp32 network: the least cosine of the outputs.
        top1_agreement: The same as a share of images with the same best class.
        p50_ms, p99_ms, throughput_ips: As `bench` measured; None where it did not.
        noisy: The times spread or drifted too much for a fine comparison.
        measured: When.
        baked: Processing is part of the file.
        front: No other row of the device is as good and faster, or as fast and better.
    """

    run: str
    file: str
    runner: str
    precision: str
    exported: str
    sha256: str
    size_mb: float
    threads: int | None = None
    score: float | None = None
    scored_by: str = ""
    score_elsewhere: bool = False
    cosine: float | None = None
    top1_agreement: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    throughput_ips: float | None = None
    noisy: bool = False
    measured: str = ""
    baked: bool = False
    front: bool = False

    @property
    def runtime(self) -> str:
        """Runner, precision and threads as text, without the obvious defaults."""
        built = f" {self.precision}" if self.precision != self.exported else ""
        return f"{self.runner}{built}" + (f" t{self.threads}" if self.threads else "")


@dataclass(frozen=True)
class Circumstances:
    """What rows must share to be compared: device, batch, the timed operations, the scored images.

    Attributes:
        device: Machine, and what of it; empty for rows that were not timed on this machine.
        batch: Images per inference.
        copies: Whether the time covers copying inputs and outputs: `in` or `out`.
        metric: Name of the score.
        split, images, fingerprint: What was scored.
    """

    device: str = ""
    batch: int = 0
    copies: str = ""
    metric: str = ""
    split: str = ""
    images: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that can be compared with each other."""

    on: Circumstances
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """Groups by device, with untimed rows last; warnings; and missing rows, with reasons."""

    runs: list[str]
    max_drop: float
    groups: list[Group]
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return asdict(self)
