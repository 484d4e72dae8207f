"""Assembles the page, and writes it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hgkd_edge import __version__
from hgkd_edge.comparison.rows import Comparison
from hgkd_edge.console import printable
from hgkd_edge.errors import RunError, UserError, reason_of
from hgkd_edge.files import atomic_write
from hgkd_edge.parsing import MAX_SETTINGS_BYTES
from hgkd_edge.report.charts import MISSING, can_draw
from hgkd_edge.report.exports import exports_section
from hgkd_edge.report.headline import headline, warnings_of
from hgkd_edge.report.origin import origin_section
from hgkd_edge.report.pictures import previews_section
from hgkd_edge.report.scores import scores_section
from hgkd_edge.report.several import sections_of_several
from hgkd_edge.report.speed import choice_of, choice_section, speed_section
from hgkd_edge.report.svg import SERIES
from hgkd_edge.report.training import read_log, training_section, with_held_out
from hgkd_edge.report.view import Lines, Note, Section, Tile
from hgkd_edge.rundir import RunDir

__all__ = ["report"]

LONGEST_TEXT = 300  # characters of a text from a run


def report(*runs: RunDir) -> Path:
    """Write a page about a run, from the files that exist; or one that compares several runs.

    Args:
        runs: Any runs, at most as many as there are colors; a section without its file is skipped.

    Returns:
        The page: `report.html` in the run's folder, or `comparison.html` in that of the first.

    Raises:
        RunError: A file of a run is damaged, or a link that leaves the run; or too many runs.
    """
    if len(runs) > SERIES:
        raise RunError(
            f"{len(runs)} runs: a report compares up to {SERIES}", hint="name fewer runs"
        )
    for run in runs:
        run.require_own_files()
    title = ", ".join(run.path.resolve().name for run in runs)
    folder = runs[0].path
    if len(runs) > 1:
        sections = _made("comparison", sections_of_several, runs)
        return _write(folder / "comparison.html", title, [], [], sections)
    choice = _made("Which file to deploy", choice_of, runs)
    tiles = _made("headline", lambda run: headline(run, choice), runs[0])
    notes = _made("headline", warnings_of, runs[0])
    sections = list(_sections(runs[0], choice))
    return _write(folder / "report.html", title, tiles, notes, sections)


def _sections(run: RunDir, choice: Comparison | None) -> Iterator[Section]:
    makers: dict[str, Callable[[RunDir], Section | None]] = {
        "Distillation": _distillation,
        "What the student sees": previews_section,
        "Fine-tuning": _finetuning,
        "Scores": scores_section,
        "Which file to deploy": lambda _: choice_section(choice),
        "Exported files and their proof": exports_section,
        "Speed": speed_section,
        "Provenance": origin_section,
        "Recipe": _recipe_section,
    }
    for title, make in makers.items():
        if (section := _made(title, make, run)) is not None:
            yield section


def _distillation(run: RunDir) -> Section | None:
    log = with_held_out(read_log(run, run.log_file), run.manifest().held_out)
    return training_section("Distillation", log)


def _finetuning(run: RunDir) -> Section | None:
    return training_section("Fine-tuning", read_log(run, run.finetune_log_file))


def _made(title: str, make: Callable[[Any], Any], of: Any) -> Any:
    """The result of `make`.

    Raises:
        RunError: Its content was not written by hgkd-edge.
    """
    try:
        return make(of)
    except UserError:
        raise
    except Exception as error:  # JSON of another shape may fail anywhere
        raise RunError(
            f"the report's section '{title}' cannot be made: {reason_of(error)}",
            hint="a JSON file of the run is damaged: make it again, or move it away",
        ) from error


def _recipe_section(run: RunDir) -> Section:
    recipe = run.read_bytes(run.recipe_file, MAX_SETTINGS_BYTES).decode(errors="replace")
    return Section("Recipe", [Lines("recipe.yaml", recipe.splitlines())])


def _write(
    path: Path, title: str, tiles: Sequence[Tile], notes: Sequence[Note], sections: list[Section]
) -> Path:
    style = (files("hgkd_edge.report") / "templates" / "report.css").read_text(encoding="utf-8")
    missing = [] if can_draw() else [Note(MISSING, tone="")]
    page = _template().render(
        title=title,
        tiles=tiles,
        notes=[*notes, *missing],
        sections=sections,
        style=Markup(style),  # a file of this package
        policy=_policy(style),
        version=__version__,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("hgkd_edge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html.j2")


def _breakable(name: str) -> Markup:
    """A name that a narrow screen breaks after `/`, `.`, `-` or `_`, not within a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[/._-])", str(_shown(name))))


def _shown(value: Any) -> Any:
    """A text of a run as one line of limited length; markup of this package is kept."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    cut = value if len(value) <= LONGEST_TEXT else f"{value[: LONGEST_TEXT - 3]}..."
    return printable(cut).replace(" %", "\N{NO-BREAK SPACE}%")


def _policy(style: str) -> Markup:
    """Content security policy: only the page, its style sheet and its embedded pictures."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return Markup(
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
