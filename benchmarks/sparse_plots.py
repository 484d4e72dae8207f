"""Draws the figures of docs/sparse.md.

    python -m benchmarks.sparse_speed --models resnet50:8 --json \\
        --ratio 0.25 0.4 0.5 0.6 0.7 0.8 0.9 > cost.jsonl
    python -m benchmarks.sparse_plots cost.jsonl      # docs/sparse_idea.png, docs/sparse_cost.png

Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrow, Rectangle

DOCS = Path(__file__).parent.parent / "docs"
SEEN, HIDDEN, HALO, FRAME = "#3b7dd8", "#e4e4e4", "#f2a33a", "#444444"
VISIBLE = [(0, 1), (0, 2), (1, 0), (2, 1), (2, 3), (3, 2)]  # (row, column) of a 4 x 4 mask


def idea(path: Path) -> None:
    """Mask, batch of tiles, and one tile with its halo."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), width_ratios=[1, 1.1, 1.2])
    _mask(axes[0])
    _tiles(axes[1])
    _halo(axes[2])
    for ax in axes:
        ax.set_aspect("equal")
        ax.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _mask(ax: Axes) -> None:
    ax.set_title("1  the mask: 6 of 16 patches visible", fontsize=10)
    for row in range(4):
        for column in range(4):
            seen = (row, column) in VISIBLE
            color = SEEN if seen else HIDDEN
            ax.add_patch(
                Rectangle((column, 3 - row), 1, 1, facecolor=color, edgecolor="white", lw=3)
            )
            if seen:
                number = str(VISIBLE.index((row, column)))
                ax.text(column + 0.5, 3.5 - row, number, ha="center", va="center", color="white")
    ax.set_xlim(-0.1, 4.1)
    ax.set_ylim(-0.1, 4.1)


def _tiles(ax: Axes) -> None:
    ax.set_title("2  the feature map: tiles [n, C, t, t]", fontsize=10)
    for number in range(6):
        x, y = number % 3 * 1.45, 1.7 - number // 3 * 1.5
        for i in range(4):
            for j in range(4):
                ax.add_patch(
                    Rectangle(
                        (x + i * 0.3, y + j * 0.3), 0.3, 0.3, facecolor=SEEN, edgecolor="white"
                    )
                )
        ax.text(x + 0.6, y + 0.6, str(number), ha="center", va="center", color="white", fontsize=12)
    ax.text(
        2.05, -0.25, "1x1 convolution, activation, normalization:\nunchanged, on these sites only",
        ha="center", va="top", fontsize=9,
    )  # fmt: skip
    ax.set_xlim(-0.1, 4.3)
    ax.set_ylim(-0.9, 3.1)


def _halo(ax: Axes) -> None:
    ax.set_title("3  a 3x3 convolution of tile 1 reads a halo", fontsize=10)
    for i in range(-1, 5):
        for j in range(-1, 5):
            own = 0 <= i < 4 and 0 <= j < 4
            from_left = i == -1 and 0 <= j < 4  # tile 0, left of tile 1, is visible
            color = SEEN if own else HALO if from_left else HIDDEN
            ax.add_patch(Rectangle((i, j), 1, 1, facecolor=color, edgecolor="white", lw=1.5))
            if not (own or from_left):
                ax.text(i + 0.5, j + 0.5, "0", ha="center", va="center", fontsize=8, color=FRAME)
    ax.add_patch(FancyArrow(-2.6, 2, 1.2, 0, width=0.07, head_width=0.35, color=FRAME))
    ax.text(-2.0, 2.4, "rows of\ntile 0", ha="center", va="bottom", fontsize=9)
    ax.text(
        1.6, -1.3, "found by one gather of rows;\nzero where masked or outside the image",
        ha="center", va="top", fontsize=9,
    )  # fmt: skip
    ax.set_xlim(-3.3, 5.1)
    ax.set_ylim(-2.7, 5.1)


def cost(rows: list[dict], path: Path) -> None:
    """Time of a step by share of visible patches, with the line through the origin."""
    figure, ax = plt.subplots(figsize=(6.4, 4))
    shares = [100 * (1 - row["ratio"]) for row in rows]
    dense = sorted(row["ms"]["dense"] for row in rows)[len(rows) // 2]
    ax.plot([0, 100], [0, 100], ":", color=FRAME, label="proportional to visible patches")
    for key, color in (("masked", HALO), ("tiles", SEEN)):
        values = [100 * row["ms"][key] / dense for row in rows]
        ax.plot(shares, values, "o-", color=color, label=key)
    ax.axhline(100, color="#999999", lw=1, label="dense")
    ax.set_xlabel("visible patches, %")
    ax.set_ylabel("time of a training step, % of dense")
    ax.set_title(
        f"{rows[0]['model']}, batch {rows[0]['batch']}, {rows[0]['dtype']}, 224 px", fontsize=10
    )
    ax.set_xlim(0, 80)
    ax.set_ylim(0, None)
    ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    idea(DOCS / "sparse_idea.png")
    if len(sys.argv) > 1:
        rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
        cost(rows, DOCS / "sparse_cost.png")


if __name__ == "__main__":
    main()
