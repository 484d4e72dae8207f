"""Results as tables for a terminal of 80 columns. Formats, and never computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hgkd_edge.doctor import Capability

__all__ = [
    "demo_table",
    "doctor_table",
    "kernels_table",
    "prediction_line",
    "recipes_table",
    "score_table",
    "task_table",
    "verification_line",
    "warning_lines",
]


def score_table(result: dict[str, Any]) -> Table:
    """k-NN and linear probe of the distilled backbone beside what it has to beat."""
    photos = result["photos"][result["split"]]
    intervals = result.get("intervals", {})
    title = f"top-1 accuracy on {photos} photos of the {result['split']} split"
    table = Table(title=title, caption=_caption(result), min_width=len(title))
    for column in ("features", "k-NN", "linear probe"):
        table.add_column(column, justify="left" if column == "features" else "right")
    for name in ("distilled", "untrained"):
        scores, ranges = result[name], intervals.get(name, {})
        table.add_row(
            name, *(_percent(scores[key], ranges.get(key)) for key in ("knn", "linear_probe"))
        )
    majority = _percent(result["majority"], intervals.get("majority"))
    table.add_row("majority class", majority, majority)
    return table


def recipes_table(found: dict[str, str]) -> Table:
    """Names of recipes, and what each gives and costs."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    for name, text in found.items():
        table.add_row(name, text)
    return table


def prediction_line(record: dict[str, Any]) -> str:
    """One photo's answer in one line."""
    if "error" in record:
        return f"{record['photo']}: {record['error']}"
    if "labels" in record:
        best = record["labels"][0]
        return f"{record['photo']}: {best['name']} {_percent(best['probability'])}"
    if "shares" in record:
        shares = [f"{name} {_percent(share)}" for name, share in record["shares"].items() if share]
        return f"{record['photo']}: {', '.join(shares)}"
    counts = Counter(box["name"] for box in record["boxes"])
    found = [f"{count} {name}" for name, count in counts.items()]
    return f"{record['photo']}: {', '.join(found) or 'nothing found'}"


def task_table(result: dict[str, Any]) -> Table:
    """Scores of a fine-tuned model on held-out photos."""
    title = f"{result['task']} on {result['photos']} photos of the {result['split']} split"
    scores, intervals = result["scores"], result.get("intervals", {})
    table = Table("score", title=title, caption=_caption(result), min_width=len(title))
    table.add_column("", justify="right")
    for name, value in scores.items():
        if isinstance(value, float):
            table.add_row(name, _percent(value, intervals.get(name)))
    if baseline := result.get("baseline"):
        table.add_row(f"baseline: {baseline['name']}", _percent(baseline["score"]))
    per_class = intervals.get("per_class", {})
    for name, value in scores.get("per_class", {}).items():
        table.add_row(f"  {name}", _percent(value, per_class.get(name)))
    return table


def warning_lines(result: dict[str, Any]) -> list[Text]:
    """What a result says against itself."""
    return [Text(f"warning: {line}", style="yellow") for line in result.get("warnings", ())]


def demo_table(result: dict[str, Any]) -> Table:
    """The whole demo in one table: each figure beside what it is to be compared with."""
    scores, cosine, export = result["evaluation"], result["held_out"], result["export"]
    latency = result["latency"]
    table = Table(title="hgkd-edge demo")
    for column in ("", "result", "compare"):
        table.add_column(column, justify="left" if not column else "right")
    ours, fresh = scores["distilled"], scores["untrained"]
    majority = f"majority class {_percent(scores['majority'])}"
    table.add_row("k-NN top-1", _percent(ours["knn"]), f"untrained {_percent(fresh['knn'])}")
    table.add_row(
        "linear probe top-1",
        _percent(ours["linear_probe"]),
        f"untrained {_percent(fresh['linear_probe'])}",
    )
    table.add_row("", "", majority)
    table.add_row(
        "teacher features, cosine at masked sites",
        f"{cosine['student']:.3f}",
        f"mean feature {cosine['mean_token']:.3f}",
    )
    table.add_section()
    table.add_row("sparse -> dense, max error", f"{result['sparse_to_dense']:.1e}", "all visible")
    error = max(output["max_abs_error"] for output in export["verification"]["outputs"])
    table.add_row("PyTorch -> ONNX, max error", f"{error:.1e}", "64 real photos")
    engine = export.get("engine")
    table.add_row(
        "TensorRT engine",
        f"{engine['size_bytes'] / 1e6:.1f} MB" if engine else "not built",
        f"{engine['backend']} {engine['version']}" if engine else result["engine_missing"],
    )
    table.add_row(
        "latency on this CPU, p50", f"{latency['p50_ms']:.2f} ms", f"p99 {latency['p99_ms']:.2f} ms"
    )
    table.add_row("whole demo", f"{result['seconds']:.0f} s", "")
    return table


def verification_line(verification: dict[str, Any]) -> str:
    """One line on how well a converted network agrees."""
    outputs = verification["outputs"]
    error = max(output["max_abs_error"] for output in outputs)
    cosine = min(output["cosine"] for output in outputs)
    return f"verified on real photos: max error {error:.1e}, cosine {cosine:.6f}"


def doctor_table(capabilities: Sequence[Capability]) -> Table:
    """One row per capability: there or not, what was found, and the mend."""
    table = Table(show_lines=False)
    for column in ("", "for", "found, or how to get it"):
        table.add_column(column)
    for capability in capabilities:
        there = capability.available
        sign = Text("yes", style="green") if there else Text("no", style="yellow")
        table.add_row(sign, capability.name, capability.found if there else capability.mend)
    return table


def kernels_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Which kernel the sparse engine takes for a convolution, and where that was measured."""
    table = Table(title="sparse kernels: the first row that fits is taken")
    for column in ("device", "dtype", "convolution", "tile", "kernel", "measured on"):
        table.add_column(column)
    for row in rows:
        side, tile = row["from_side"], row["up_to_tile"]
        convolution = row["kind"] if side == 1 else f"{row['kind']}, {side}x{side} and up"
        size = f"to {tile}x{tile}" if tile < 1024 else "any"
        table.add_row(
            row["device"], row["dtype"], convolution, size, row["kernel"], row["measured"]
        )
    return table


def _percent(share: float, interval: Sequence[float] | None = None) -> str:
    shown = f"{100 * share:.1f} %"
    if interval is None:
        return shown
    low, high = interval
    return f"{shown} ({100 * low:.1f} to {100 * high:.1f})"


def _caption(result: dict[str, Any]) -> str | None:
    method = result.get("interval_method")
    return f"in brackets: {method}" if method else None
