"""Where a run comes from: teacher and its license, images, versions, seeds, hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hgkd_edge.distillation.license import license_terms
from hgkd_edge.files import file_sha256
from hgkd_edge.report.view import Block, Cell, Facts, Section, Table, Tone, capped
from hgkd_edge.rundir import RunDir

__all__ = ["origin_section"]

_SHOWN = 16  # characters of a hash
_PLAIN = ("name", "weights", "file")


def origin_section(run: RunDir) -> Section | None:
    """Teacher, student, images, machine and files; None for a run without a manifest."""
    manifest = run.manifest()
    if not manifest:
        return None
    rows = [*_networks(manifest), *_circumstances(manifest)]
    blocks: list[Block] = [Facts(rows)] if rows else []
    if finetuned := manifest.get("finetune"):
        facts = [(f"fine-tuning: {name}", cell) for name, cell in _circumstances(finetuned)]
        same = {(name, cell.text) for name, cell in rows}
        differing = [
            (name, cell)
            for name, cell in facts
            if (name.removeprefix("fine-tuning: "), cell.text) not in same
        ]
        blocks += [Facts(differing)] if differing else []
    if artifacts := manifest.get("artifacts", {}):
        columns = ("file", "on disk", "made from", "sha256")
        files = [_file(run, name, entry) for name, entry in artifacts.items()]
        blocks.append(Table(columns, capped(files, len(columns)), title="Recorded files"))
    return Section("Provenance", blocks)


def _networks(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    for role in ("teacher", "student"):
        entry = manifest.get(role, {})
        if entry:
            others = [
                f"{key} {value}"
                for key, value in entry.items()
                if value and key not in (*_PLAIN, "sha256", "license")
            ]
            weights = [f"weights: {entry['weights']}"] if entry.get("weights") else []
            yield role, Cell(", ".join([str(entry.get("name", "?")), *weights, *others]))
        if license := entry.get("license"):
            tone: Tone = "warn" if license_terms(license) else "good"
            yield f"{role}'s license", Cell(license, tone, badge=True)
        if sha256 := entry.get("sha256"):
            yield f"{role}'s weights", Cell(f"sha256 {sha256[:_SHOWN]}", mono=True)


def _circumstances(entry: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    for split, data in entry.get("data", {}).items():
        skipped = f", {len(data['skipped']):,} skipped" if data["skipped"] else ""
        text = f"{data['photos']:,} images{skipped}, fingerprint {data['fingerprint'][:_SHOWN]}"
        yield f"{split} split", Cell(text)
    for name in ("seed", "precision"):
        if entry.get(name) is not None:
            yield name, Cell(str(entry[name]))
    for name in ("hardware", "versions"):
        if values := entry.get(name):
            yield name, Cell(", ".join(f"{key} {value}" for key, value in values.items() if value))
    if revision := entry.get("git_revision"):
        yield "git revision", Cell(str(revision), mono=True)


def _file(run: RunDir, name: str, entry: Mapping[str, Any]) -> list[Cell]:
    """A recorded file, its recorded sha256, and whether it is unchanged."""
    return [
        Cell(name, mono=True),
        _on_disk(run, name, entry["sha256"]),
        Cell(", ".join(entry["made_from"]), mono=True),
        Cell(entry["sha256"][:_SHOWN], mono=True),
    ]


def _on_disk(run: RunDir, name: str, recorded: str) -> Cell:
    file = run.path / name
    if Path(name).is_absolute() or not file.resolve().is_relative_to(run.path.resolve()):
        return Cell("elsewhere, not looked at", "warn", badge=True)
    if not file.is_file():
        return Cell("MISSING", "bad", badge=True)
    found = file_sha256(run.own(file))
    if found == recorded:
        return Cell("unchanged", "good", badge=True)
    return Cell(f"CHANGED: {found[:_SHOWN]}", "bad", badge=True)
