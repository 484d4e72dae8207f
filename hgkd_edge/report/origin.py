"""Where a run comes from: teacher, license, images, versions; whether its files are unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hgkd_edge.cells import counted
from hgkd_edge.distillation.license import license_terms
from hgkd_edge.files import file_sha256
from hgkd_edge.manifest_record import Artifact, Circumstances, ManifestRecord
from hgkd_edge.report.view import Block, Cell, Facts, Section, Table, Tone, capped
from hgkd_edge.rundir import RunDir

__all__ = ["origin_section"]

_SHOWN = 16  # characters of a hash


def origin_section(run: RunDir) -> Section | None:
    """Teacher, student, images, machine and files; None for a run without a manifest."""
    manifest = run.manifest()
    rows = [*_networks(manifest), *_circumstances(manifest)]
    blocks: list[Block] = [Facts(rows)] if rows else []
    if manifest.finetune is not None:
        tuning = _circumstances(manifest.finetune)
        facts = [(f"fine-tuning: {name}", cell) for name, cell in tuning]
        same = {(name, cell.text) for name, cell in rows}
        differing = [
            (name, cell)
            for name, cell in facts
            if (name.removeprefix("fine-tuning: "), cell.text) not in same
        ]
        blocks += [Facts(differing)] if differing else []
    if manifest.artifacts:
        columns = ("file", "on disk", "made from", "sha256")
        files = [_file(run, name, artifact) for name, artifact in manifest.artifacts.items()]
        blocks.append(Table(columns, capped(files, len(columns)), title="Recorded files"))
    return Section("Provenance", blocks) if blocks else None


def _networks(manifest: ManifestRecord) -> Iterator[tuple[str, Cell]]:
    for role, origin in (("teacher", manifest.teacher), ("student", manifest.student)):
        if origin is None:
            continue
        weights = [f"weights: {origin.weights}"] if origin.weights else []
        others = [f"{key} {value}" for key, value in (origin.model_extra or {}).items() if value]
        yield role, Cell(", ".join([origin.name or "?", *weights, *others]))
        if origin.license:
            tone: Tone = "warn" if license_terms(origin.license) else "good"
            yield f"{role}'s license", Cell(origin.license, tone, badge=True)
        if origin.sha256:
            yield f"{role}'s weights", Cell(f"sha256 {origin.sha256[:_SHOWN]}", mono=True)


def _circumstances(found: Circumstances) -> Iterator[tuple[str, Cell]]:
    for split, data in found.data.items():
        skipped = f", {data.skipped_count:,} skipped" if data.skipped_count else ""
        text = f"{counted(data.photos, 'image')}{skipped}, fingerprint {data.fingerprint[:_SHOWN]}"
        yield f"{split} split", Cell(text)
    if found.seed is not None:
        yield "seed", Cell(str(found.seed))
    if found.precision is not None:
        yield "precision", Cell(found.precision)
    if found.hardware is not None:
        yield "hardware", Cell(_listed(found.hardware.to_dict()))
    if found.versions:
        yield "versions", Cell(_listed(found.versions))
    if found.git_revision:
        yield "git revision", Cell(found.git_revision, mono=True)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value)


def _file(run: RunDir, name: str, artifact: Artifact) -> list[Cell]:
    """A recorded file, its recorded sha256, and whether it is unchanged."""
    return [
        Cell(name, mono=True),
        _on_disk(run, name, artifact.sha256),
        Cell(", ".join(artifact.made_from), mono=True),
        Cell(artifact.sha256[:_SHOWN], mono=True),
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
