"""One self-contained HTML page about a run: how it was trained, what it scores, what was proved.

Tables are those of the terminal, so a figure has one form everywhere. Needs the base install only.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from exporters.verify import SET_ASIDE
from hgkd_edge import __version__
from hgkd_edge.bench.baseline import failed_models, with_fp32_baseline
from hgkd_edge.bench.records import Session, load_bench
from hgkd_edge.bench.tables import session_view
from hgkd_edge.console import make_console
from hgkd_edge.export_command import export_lines
from hgkd_edge.export_record import read_exports
from hgkd_edge.rundir import RunDir, atomic_write
from hgkd_edge.tables import score_table, task_table, warning_lines

__all__ = ["report"]

COLUMNS = 100  # of the tables, in characters
POINTS = 240  # of a curve: each is the mean of its share of the steps
WIDTH, HEIGHT, MARGIN = 720, 200, 40  # of a curve's picture, in pixels
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }}
pre {{ font: 13px/1.15 ui-monospace, Menlo, Consolas, monospace; overflow-x: auto; }}
img {{ max-width: 100%; }} svg text {{ font: 12px system-ui, sans-serif; fill: #555; }}
h2 {{ border-bottom: 1px solid #ccc; margin-top: 2.5rem; }}
</style></head><body><h1>{title}</h1>
{body}
<p>Written by hgkd-edge {version}.</p></body></html>
"""


def report(run: RunDir) -> Path:
    """Write `report.html` into a run folder, of all that is there by now.

    Args:
        run: Any run; a section whose file has not been made yet is left out.

    Returns:
        The page.

    Raises:
        RunError: A file of the run is damaged.
    """
    sections = [f"<h2>{title}</h2>\n{content}" for title, content in _sections(run)]
    title = f"hgkd-edge: {html.escape(run.path.resolve().name)}"
    path = run.path / "report.html"
    with atomic_write(path) as temporary:
        page = PAGE.format(title=title, body="\n".join(sections), version=__version__)
        temporary.write_text(page, encoding="utf-8")
    return path


def _sections(run: RunDir) -> Iterator[tuple[str, str]]:
    """Titles and contents, as HTML."""
    for title, name in (("Distillation", "log.jsonl"), ("Fine-tuning", "finetune.jsonl")):
        if records := _records(run.path / name):
            yield title, _curve(records)
    if scores := [*_scores(run)]:
        yield "Scores", _text(scores)
    if pictures := sorted((run.path / "pictures").glob("*.png")):
        yield "Pictures", "\n".join(map(_picture, pictures))
    exported = read_exports(run)
    failed = _failed_files(run, exported)
    if exported or failed:
        yield "Exported files and their proof", _text(_proofs(exported, failed))
    if (bench := run.path / "bench.json").is_file():
        yield "Speed", _text(_speed(session, failed) for session in load_bench(bench).sessions)
    if manifest := run.manifest():
        yield "Origin", _text([_origin(manifest), _artefacts(manifest)])
    yield "Recipe", f"<pre>{html.escape(run.recipe_file.read_text(encoding='utf-8'))}</pre>"


def _failed_files(run: RunDir, exported: dict[str, Any]) -> frozenset[str]:
    """Names of files that failed verification: as recorded, and those that were set aside."""
    recorded = {
        Path(entry["path"]).name for entry in exported.get("files", []) if not _passed(entry)
    }
    return frozenset({*recorded, *(f.name for f in run.export_dir.glob(f"*.{SET_ASIDE}.*"))})


def _passed(entry: dict[str, Any]) -> bool:
    proof = entry.get("verification")
    return proof is None or bool(proof.get("passed", True))


def _proofs(exported: dict[str, Any], failed: frozenset[str]) -> Iterator[RenderableType]:
    """What every good file agrees with, by the images it was verified on; then the failed ones."""
    good = [entry for entry in exported.get("files", []) if _passed(entry)]
    while good:
        images = good[0]["verified_on"]
        same = [entry for entry in good if entry["verified_on"] == images]
        good = [entry for entry in good if entry["verified_on"] != images]
        shown = {} if good else {"sensitivity": exported.get("sensitivity", {})}
        yield from export_lines({"verified_on": images, "files": same, **shown})
    for name in sorted(failed):
        yield Text(f"{name}: FAILED verification, do not deploy it", style="red")


def _speed(session: Session, failed: frozenset[str]) -> RenderableType:
    compared = with_fp32_baseline(session, failed_models(session, failed))
    return session_view(compared, failed=failed)


def _scores(run: RunDir) -> Iterator[RenderableType]:
    finetuned = _json(run.path / "finetune.json")
    if "scores" in finetuned:
        yield task_table(finetuned)
        yield from warning_lines(finetuned)
    if evaluated := _json(run.path / "evaluation.json"):
        if "distilled" in evaluated:
            yield score_table(evaluated)
        else:
            yield f"{evaluated['model']} in {evaluated['runtime']}"
            yield task_table(evaluated)
        yield from warning_lines(evaluated)


def _origin(manifest: dict[str, Any]) -> Table:
    """Teacher, photos and circumstances, one line each."""
    table = Table(box=None, show_header=False)
    for name in ("teacher", "hardware", "versions"):
        entries = manifest.get(name, {})
        table.add_row(name, ", ".join(f"{key} {value}" for key, value in entries.items() if value))
    for split, data in manifest.get("data", {}).items():
        skipped = f", {len(data['skipped'])} left out" if data["skipped"] else ""
        table.add_row(f"{split} photos", f"{data['photos']}{skipped}, {data['fingerprint'][:16]}")
    for name in ("seed", "precision", "git_revision"):
        if manifest.get(name) is not None:
            table.add_row(name, str(manifest[name]))
    return table


def _artefacts(manifest: dict[str, Any]) -> Table:
    table = Table("file", "made from", "sha256")
    for name, entry in manifest.get("artefacts", {}).items():
        table.add_row(name, ", ".join(entry["made_from"]), entry["sha256"][:16])
    return table


def _curve(records: list[dict[str, Any]]) -> str:
    """The loss over the steps as an SVG, and the last figures below."""
    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    size = max(1, len(records) // POINTS)
    parts = [slice(i, i + size) for i in range(0, len(records), size)]
    points = [(steps[part][-1], sum(losses[part]) / len(losses[part])) for part in parts]
    low, high = min(y for _, y in points), max(y for _, y in points)
    across = (WIDTH - 2 * MARGIN) / max(1, steps[-1])
    down = (HEIGHT - 2 * MARGIN) / max(1e-12, high - low)
    line = " ".join(
        f"{MARGIN + x * across:.1f},{MARGIN + (high - y) * down:.1f}" for x, y in points
    )
    figures = {key: value for key, value in records[-1].items() if isinstance(value, float)}
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over steps">'
        f'<polyline points="{line}" fill="none" stroke="#2a6fbb" stroke-width="2"/>'
        f'<text x="{MARGIN}" y="{MARGIN - 10}">loss {high:.3g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 20}" text-anchor="end">'
        f"step {steps[-1]}, {low:.3g}</text></svg>"
        f"<p>Last step: {', '.join(f'{key} {value:.4g}' for key, value in figures.items())}</p>"
    )


def _picture(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(file.stem)}"></figure>'
    )


def _text(parts: Iterable[RenderableType]) -> str:
    """What the terminal would show, as HTML."""
    console = make_console(record=True, file=io.StringIO(), width=COLUMNS)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _records(file: Path) -> list[dict[str, Any]]:
    """Lines of a training log; a killed process may have left the last one half written."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    whole = [line for line in lines if line.endswith("}")]
    return [record for record in map(json.loads, whole) if "loss" in record]


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
