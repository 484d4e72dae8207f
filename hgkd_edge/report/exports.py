"""Every exported file with its proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters.verify import SET_ASIDE
from hgkd_edge.export_record import read_exports
from hgkd_edge.report.view import Block, Cell, Lines, Note, Section, Table, Tile, capped
from hgkd_edge.rundir import RunDir

__all__ = ["exports_section", "failed_files", "proof_tile"]

_WORST_LAYERS = 10
_COLUMNS = ("file", "proof", "kind", "size", "max error", "cosine", "same class", "compared on")


def exports_section(run: RunDir) -> Section | None:
    """The agreement of every file with what it was made from, failed files included."""
    exported = read_exports(run)
    files = sorted(exported.get("files", []), key=_place)
    rows = [_row(entry) for entry in files]
    failed = failed_files(run)
    listed = {row[0].text for row in rows}
    rows += [_failed_row(name) for name in sorted(failed - listed)]
    if not rows:
        return None
    text = (
        "Each file was compared, as it lies on disk, with the file that it was made from, on "
        "images that no network has seen."
    )
    warnings = [f"{name}: FAILED verification, do not deploy it" for name in sorted(failed)]
    table = Table(_COLUMNS, capped(rows, len(_COLUMNS)), about=text)
    blocks: list[Block] = [Note(*warnings, tone="bad"), table] if warnings else [table]
    drops = [_drop(entry) for entry in files if entry.get("accuracy")]
    if drops:
        columns = ("file", "score", "in float", "drop", "at most", "kept in float")
        blocks.append(Table(columns, capped(drops, len(columns)), title="Accuracy of INT8 files"))
    for flavor, layers in exported.get("sensitivity", {}).items():
        worst = [f"{layer['damage']:.3f} {layer['module']}" for layer in layers[:_WORST_LAYERS]]
        blocks.append(Lines(f"Most damaging layers in INT8 ({flavor})", worst))
    return Section("Exported files and their proof", blocks)


def proof_tile(run: RunDir) -> Tile | None:
    """How many files passed; None where nothing was exported."""
    entries = read_exports(run).get("files", [])
    failed = failed_files(run)
    count = len({Path(entry["path"]).name for entry in entries} | failed)
    if not count:
        return None
    value = f"{count - len(failed)} of {count}"
    about = "exported files passed verification"
    return Tile("Proof", value, about, "bad" if failed else "good")


def failed_files(run: RunDir) -> frozenset[str]:
    """Names of files that failed verification: as recorded, and those that were set aside."""
    entries = read_exports(run).get("files", [])
    recorded = {Path(entry["path"]).name for entry in entries if not _passed(entry)}
    return frozenset({*recorded, *(f.name for f in run.export_dir.glob(f"*.{SET_ASIDE}.*"))})


def _passed(entry: Mapping[str, Any]) -> bool:
    proof = entry.get("verification")
    return proof is None or bool(proof.get("passed", True))


def _place(entry: Mapping[str, Any]) -> tuple[bool, str, str]:
    """fp32 first, then by precision and name."""
    return entry["precision"] != "fp32", entry["precision"], entry["path"]


def _row(entry: Mapping[str, Any]) -> list[Cell]:
    proof, on = entry.get("verification") or {}, entry["verified_on"]
    passed = _passed(entry)
    kind = f"{entry['kind']} {entry['precision']}"
    if "flavor" in entry:
        kind += f" {entry['flavor']}"
    if entry["kind"] == "engine":
        kind += f", {entry['backend']} {entry['version']}, {entry['device']}"
    verdict = Cell("FAILED", "bad", badge=True)
    if passed:
        verdict = Cell("agrees", "good", badge=True) if proof else Cell("-", "muted")
    return [
        Cell(Path(entry["path"]).name, mono=True),
        verdict,
        Cell(kind),
        _number(entry["size_bytes"] / 2**20, "{:.1f} MiB"),
        _number(proof.get("max_abs_error"), "{:.1e}"),
        _number(proof.get("cosine"), "{:.6f}"),
        _agreement(proof),
        Cell(f"{on['photos']} {on['split']} images"),
    ]


def _agreement(proof: Mapping[str, Any]) -> Cell:
    """Share of images, pixels or boxes with the same best class."""
    if proof.get("iou") is not None:
        return _number(proof["iou"], "IoU {:.3f}")
    return _number(proof.get("top1_agreement"), "{:.1%}")


def _number(value: float | None, form: str) -> Cell:
    return Cell("-" if value is None else form.format(value), number=True)


def _failed_row(name: str) -> list[Cell]:
    empty = [Cell("-", "muted")] * (len(_COLUMNS) - 2)
    return [Cell(name, mono=True), Cell("FAILED", "bad", badge=True), *empty]


def _drop(entry: Mapping[str, Any]) -> list[Cell]:
    accuracy = entry["accuracy"]
    return [
        Cell(Path(entry["path"]).name, mono=True),
        Cell(f"{accuracy['metric']} {accuracy['score']:.2f}", number=True),
        _number(accuracy["float_score"], "{:.2f}"),
        _number(accuracy["drop"], "{:.2f} points"),
        _number(accuracy["max_drop"], "{:g}"),
        Cell(", ".join(accuracy["kept_float"]) or "nothing", mono=True),
    ]
