"""One self-contained HTML page about a run: how it was trained, its scores, and what was verified.

Tables are those of the terminal, so a figure looks the same everywhere. Needs the base install
only. A run may come from a stranger: the template escapes every value, and the page allows no
script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from exporters.verify import SET_ASIDE
from hgkd_edge import __version__
from hgkd_edge.bench.baseline import (
    FAILED_SINCE,
    failed_models,
    outdated_models,
    with_fp32_baseline,
)
from hgkd_edge.bench.records import Session, load_bench
from hgkd_edge.bench.tables import session_view
from hgkd_edge.comparison.artifacts import artifacts_of
from hgkd_edge.comparison.table import compare_runs
from hgkd_edge.comparison.view import comparison_lines
from hgkd_edge.console import make_console, printable, warn
from hgkd_edge.distillation.license import license_notes
from hgkd_edge.errors import RunError, UserError, reason_of
from hgkd_edge.export_record import read_exports
from hgkd_edge.files import file_sha256
from hgkd_edge.parsing import MAX_LABEL_BYTES, MAX_LOG_BYTES, MAX_SETTINGS_BYTES, cut, parse_json
from hgkd_edge.rundir import RunDir, atomic_write
from hgkd_edge.tables import export_lines, score_table, task_table, warning_lines

__all__ = ["report"]

COLUMNS = 100  # of the tables, in characters
POINTS = 240  # of a curve: each is the mean of its share of the steps
BAD = ("FAILED verification", "│ CHANGED: ", "│ MISSING ")  # in a line that warns
MOST_PICTURES_BYTES = 2**28  # of all pictures that are embedded in the page
PNG = b"\x89PNG\r\n\x1a\n"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }
pre { font: 13px/1.15 ui-monospace, Menlo, Consolas, monospace; overflow-x: auto; }
pre strong { color: #b3261e; }
img { max-width: 100%; } svg text { font: 12px system-ui, sans-serif; fill: #555; }
h2 { border-bottom: 1px solid #ccc; margin-top: 2.5rem; }
"""


@dataclass(frozen=True)
class Line:
    """One line of text; `bad` where it warns."""

    text: str

    @property
    def bad(self) -> bool:
        return self.text.startswith("warning:") or any(sign in self.text for sign in BAD)


@dataclass(frozen=True)
class Picture:
    """A PNG file by its name."""

    name: str
    base64: str


@dataclass(frozen=True)
class Curve:
    """The loss over the steps, in pixels of an SVG, and the last figures as text."""

    points: str
    low: str
    high: str
    steps: int
    last: str
    width: int = 720
    height: int = 200
    margin: int = 40


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    lines: tuple[Line, ...] = ()
    pictures: tuple[Picture, ...] = ()
    curve: Curve | None = None


def report(run: RunDir) -> Path:
    """Write `report.html` into a run folder from the files that exist.

    Args:
        run: Any run; a section without its file is skipped.

    Returns:
        The page.

    Raises:
        RunError: A file of the run is damaged, or a link that leaves the run.
    """
    run.require_own_files()
    page = _template().render(
        title=f"hgkd-edge: {printable(run.path.resolve().name)}",
        sections=list(_sections(run)),
        style=Markup(STYLE),  # a constant of this file
        policy=_policy(),
        version=__version__,
    )
    path = run.path / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("hgkd_edge"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _policy() -> str:
    """Content security policy: only the page, its style sheet and its embedded pictures."""
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sections(run: RunDir) -> Iterator[Section]:
    for title, log in (("Distillation", run.log_file), ("Fine-tuning", run.finetune_log_file)):
        if records := _records(run, log):
            yield Section(title, curve=_curve(records))
    yield from _text_section("Scores", lambda: _scores(run))
    if pictures := tuple(_pictures(run)):
        yield Section("Pictures", pictures=pictures)
    yield from _text_section("Exported files and their proof", lambda: _exports(run))
    yield from _text_section("Speed", lambda: _speed(run))
    yield from _text_section("Comparison", lambda: _comparison(run))
    yield from _text_section("Origin", lambda: _manifest(run))
    recipe = run.read_bytes(run.recipe_file, MAX_SETTINGS_BYTES).decode(errors="replace")
    yield Section("Recipe", lines=tuple(map(Line, map(printable, recipe.splitlines()))))


def _text_section(title: str, parts: Callable[[], Iterable[RenderableType]]) -> Iterator[Section]:
    """A section as the terminal would show it; none where there is no content.

    Raises:
        RunError: The content was not written by hgkd-edge.
    """
    console = make_console(record=True, file=io.StringIO(), width=COLUMNS)
    try:
        for part in parts():
            console.print(part, soft_wrap=isinstance(part, (str, Text)))
    except UserError:
        raise
    except Exception as error:  # JSON of another shape may fail anywhere
        raise RunError(
            f"the report's section '{title}' cannot be made: {reason_of(error)}",
            hint="a JSON file of the run is damaged: make it again, or move it away",
        ) from error
    lines = console.export_text().splitlines()
    if lines:
        yield Section(title, lines=tuple(map(Line, lines)))


def _exports(run: RunDir) -> Iterator[RenderableType]:
    """The agreement of every verified file, by verification images; then the failed files."""
    exported = read_exports(run)
    good = [entry for entry in exported.get("files", []) if _passed(entry)]
    while good:
        images = good[0]["verified_on"]
        same = [entry for entry in good if entry["verified_on"] == images]
        good = [entry for entry in good if entry["verified_on"] != images]
        shown = {} if good else {"sensitivity": exported.get("sensitivity", {})}
        yield from export_lines({"verified_on": images, "files": same, **shown})
    for name in sorted(_failed_files(run)):
        yield f"{name}: FAILED verification, do not deploy it"


def _failed_files(run: RunDir) -> frozenset[str]:
    """Names of files that failed verification: as recorded, and those that were set aside."""
    entries = read_exports(run).get("files", [])
    recorded = {Path(entry["path"]).name for entry in entries if not _passed(entry)}
    return frozenset({*recorded, *(f.name for f in run.export_dir.glob(f"*.{SET_ASIDE}.*"))})


def _passed(entry: dict[str, Any]) -> bool:
    proof = entry.get("verification")
    return proof is None or bool(proof.get("passed", True))


def _speed(run: RunDir) -> Iterator[RenderableType]:
    bench = run.own(run.path / "bench.json")
    if bench.is_file():
        failed = _failed_files(run)
        for session in load_bench(bench).sessions:
            outdated = outdated_models(session, bench)
            since = {label for label, what in outdated.items() if what == FAILED_SINCE}
            names = {Path(m.path).name for m in session.models if m.label in since}
            yield _compared(session, failed | names)
            for label, what in outdated.items():
                yield f"warning: {label} {what}; measure again: hgkd-edge bench"


def _compared(session: Session, failed: frozenset[str]) -> RenderableType:
    compared = with_fp32_baseline(session, failed_models(session, failed))
    return session_view(compared, failed=failed)


def _comparison(run: RunDir) -> Iterator[RenderableType]:
    """The tables of `compare`, from recorded figures."""
    if artifacts_of(run).artifacts:
        yield from comparison_lines(compare_runs([run], score=False))


def _scores(run: RunDir) -> Iterator[RenderableType]:
    finetuned = _json(run, "finetune.json")
    if "scores" in finetuned:
        yield task_table(finetuned)
        yield from warning_lines(finetuned)
    if evaluated := _json(run, "evaluation.json"):
        if "distilled" in evaluated:
            yield score_table(evaluated)
        else:
            yield f"{evaluated['model']} in {evaluated['runtime']}"
            yield task_table(evaluated)
        yield from warning_lines(evaluated)


def _manifest(run: RunDir) -> Iterator[RenderableType]:
    if manifest := run.manifest():
        yield from warning_lines({"warnings": license_notes(manifest)})
        yield _origin(manifest)
        yield _artifacts(run, manifest)


def _origin(manifest: dict[str, Any]) -> Table:
    """Teacher, images and environment, one line each."""
    table = Table(box=None, show_header=False)
    for name in ("teacher", "hardware", "versions"):
        entries = manifest.get(name, {})
        table.add_row(name, ", ".join(f"{key} {value}" for key, value in entries.items() if value))
    for split, data in manifest.get("data", {}).items():
        skipped = f", {len(data['skipped'])} skipped" if data["skipped"] else ""
        table.add_row(f"{split} images", f"{data['photos']}{skipped}, {data['fingerprint'][:16]}")
    for name in ("seed", "precision", "git_revision"):
        if manifest.get(name) is not None:
            table.add_row(name, str(manifest[name]))
    return table


def _artifacts(run: RunDir, manifest: dict[str, Any]) -> Table:
    """Every recorded file, its recorded sha256, and whether it is unchanged."""
    table = Table("file", "made from", "sha256", "on disk")
    for name, entry in manifest.get("artifacts", {}).items():
        now = _on_disk(run, name, entry["sha256"])
        style = None if now == "the same" else "red"
        table.add_row(name, ", ".join(entry["made_from"]), entry["sha256"][:16], now, style=style)
    return table


def _on_disk(run: RunDir, name: str, recorded: str) -> str:
    file = run.path / name
    if Path(name).is_absolute() or not file.resolve().is_relative_to(run.path.resolve()):
        return "elsewhere, not looked at"
    if not file.is_file():
        return "MISSING"
    found = file_sha256(run.own(file))
    return "the same" if found == recorded else f"CHANGED: {found[:16]}"


def _curve(records: list[tuple[float, dict[str, float]]]) -> Curve:
    """The loss over the steps, and the last figures below.

    Args:
        records: Step and figures of each batch, "loss" among them.
    """
    steps, losses = [step for step, _ in records], [figures["loss"] for _, figures in records]
    size = max(1, len(records) // POINTS)
    parts = [slice(i, i + size) for i in range(0, len(records), size)]
    points = [(steps[part][-1], sum(losses[part]) / len(losses[part])) for part in parts]
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = Curve.margin
    across = (Curve.width - 2 * margin) / max(1, steps[-1])
    down = (Curve.height - 2 * margin) / max(1e-12, high - low)
    return Curve(
        points=" ".join(
            f"{margin + x * across:.1f},{margin + (high - y) * down:.1f}" for x, y in points
        ),
        low=f"{low:.3g}",
        high=f"{high:.3g}",
        steps=int(steps[-1]),
        last=", ".join(f"{cut(printable(k))} {v:.4g}" for k, v in records[-1][1].items()),
    )


def _pictures(run: RunDir) -> Iterator[Picture]:
    """The PNG files of a run; files that only have the suffix are skipped."""
    left = MOST_PICTURES_BYTES
    for file in sorted((run.path / "pictures").glob("*.png")):
        if not file.is_file():
            continue
        left -= file.stat().st_size
        if left < 0:
            warn(f"{file}: the report is full: it and later pictures are not shown")
            return
        content = run.read_bytes(file)
        if content.startswith(PNG):
            yield Picture(printable(file.stem), base64.b64encode(content).decode())


def _records(run: RunDir, log: Path) -> list[tuple[float, dict[str, float]]]:
    """Step and finite figures of a log's batches.

    A killed process may have left the last line half written; lines that are not a batch are
    skipped.
    """
    lines = run.read_bytes(log, MAX_LOG_BYTES).splitlines() if log.is_file() else []
    found = []
    for line in lines:
        try:
            record = parse_json(line.decode(), MAX_LABEL_BYTES)
        except ValueError:
            continue
        if isinstance(record, dict):
            figures = {key: value for key, value in record.items() if _is_finite(value)}
            if "step" in figures and "loss" in figures:
                shown = {k: v for k, v in figures.items() if isinstance(v, float) or k == "loss"}
                found.append((figures["step"], shown))
    return found


def _is_finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e15 and math.isfinite(value)


def _json(run: RunDir, name: str) -> dict[str, Any]:
    file = run.path / name
    return run.read_json(file) if file.is_file() else {}
