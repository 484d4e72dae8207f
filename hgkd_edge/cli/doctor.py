"""The command `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson
from hgkd_edge.cli.output import show

if TYPE_CHECKING:
    from hgkd_edge.doctor import Capability
    from hgkd_edge.sparse.choice import Choice


def doctor(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show which sparse kernel runs where, and why.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this machine can do, and what to install for the rest.

    Example: hgkd-edge doctor
    """
    if kernels:
        from hgkd_edge.sparse import kernel_table

        choices = kernel_table()
        rows = [choice._asdict() for choice in choices]
        show(rows, as_json, lambda: [_kernels_table(choices)])
        return

    from hgkd_edge.doctor import examine

    capabilities = examine()
    show([asdict(c) for c in capabilities], as_json, lambda: [_table(capabilities)])


def _table(capabilities: Sequence[Capability]) -> Any:
    """One row per capability: available or not, what was found, or how to get it."""
    from rich.table import Table
    from rich.text import Text

    table = Table("ready", "feature", "found, or how to get it")
    for capability in capabilities:
        there = capability.available
        sign = Text("yes", style="green") if there else Text("no", style="yellow")
        table.add_row(sign, capability.name, capability.found if there else capability.hint)
    return table


def _kernels_table(choices: Sequence[Choice]) -> Any:
    """Which kernel the sparse engine takes for a convolution, and where that was measured."""
    from rich.table import Table

    table = Table(title="sparse kernels: the first row that fits is taken")
    for column in ("device", "dtype", "convolution", "tile", "kernel", "measured on"):
        table.add_column(column)
    for row in choices:
        side, tile = row.from_side, row.up_to_tile
        convolution = row.kind if side == 1 else f"{row.kind}, {side}x{side} and up"
        size = f"to {tile}x{tile}" if tile < 1024 else "any"
        table.add_row(row.device, row.dtype, convolution, size, row.kernel, row.measured)
    return table
