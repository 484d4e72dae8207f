"""Every exported file with its proof."""

from __future__ import annotations

from exporters.verify import SET_ASIDE
from hgkd_edge.cells import counted
from hgkd_edge.export_record import Accuracy, ExportedFile, Proof, read_exports
from hgkd_edge.report.view import Block, Cell, Lines, Note, Section, Table, Tile, capped
from hgkd_edge.rundir import RunDir

__all__ = ["exports_section", "failed_files", "proof_tile"]

_WORST_LAYERS = 10
_COLUMNS = ("file", "proof", "kind", "size", "max error", "cosine", "same class", "compared on")


def exports_section(run: RunDir) -> Section | None:
    """The agreement of every file with what it was made from, failed files included."""
    exported = read_exports(run)
    files = sorted(exported.files, key=_place)
    rows = [_row(one) for one in files]
    failed = failed_files(run)
    listed = {row[0].text for row in rows}
    rows += [_failed_row(name) for name in sorted(failed - listed)]
    if not rows:
        return None
    text = (
        "Each file was compared, as stored on disk, with the file that it was made from, on "
        "images that no network has seen."
    )
    warnings = [f"{name}: FAILED verification, do not deploy it" for name in sorted(failed)]
    table = Table(_COLUMNS, capped(rows, len(_COLUMNS)), about=text)
    blocks: list[Block] = [Note(*warnings, tone="bad"), table] if warnings else [table]
    drops = [_drop(one, one.accuracy) for one in files if one.accuracy]
    if drops:
        columns = ("file", "score", "in float", "drop", "at most", "kept in float")
        blocks.append(Table(columns, capped(drops, len(columns)), title="Accuracy of INT8 files"))
    for flavor, layers in exported.sensitivity.items():
        worst = [f"{layer.damage:.3f} {layer.module}" for layer in layers[:_WORST_LAYERS]]
        blocks.append(Lines(f"Most damaging layers in INT8 ({flavor})", worst))
    return Section("Exported files and their proof", blocks)


def proof_tile(run: RunDir) -> Tile | None:
    """How many files passed; None where nothing was exported."""
    failed = failed_files(run)
    count = len({one.name for one in read_exports(run).files} | failed)
    if not count:
        return None
    value = f"{count - len(failed)} of {count}"
    about = "exported files passed verification"
    return Tile("Proof", value, about, "bad" if failed else "good")


def failed_files(run: RunDir) -> frozenset[str]:
    """Names of files that failed verification: as recorded, and those that were set aside."""
    recorded = {one.name for one in read_exports(run).files if not one.passed}
    return frozenset({*recorded, *(f.name for f in run.export_dir.glob(f"*.{SET_ASIDE}.*"))})


def _place(file: ExportedFile) -> tuple[bool, str, str]:
    """fp32 first, then by precision and name."""
    return file.precision != "fp32", file.precision, file.path


def _row(file: ExportedFile) -> list[Cell]:
    proof, on = file.verification or Proof(), file.verified_on
    kind = f"{file.kind} {file.precision}"
    if file.flavor:
        kind += f" {file.flavor}"
    if file.kind == "engine":
        kind += f", {file.backend} {file.version}, {file.device}"
    verdict = Cell("FAILED", "bad", badge=True)
    if file.passed:
        agrees = Cell("agrees", "good", badge=True)
        verdict = agrees if file.verification else Cell("-", "muted")
    return [
        Cell(file.name, mono=True),
        verdict,
        Cell(kind),
        _number(file.size_bytes / 2**20, "{:.1f} MiB"),
        _number(proof.max_abs_error, "{:.1e}"),
        _number(proof.cosine, "{:.6f}"),
        _agreement(proof),
        Cell(counted(on.photos, f"{on.split} image") if on else "-"),
    ]


def _agreement(proof: Proof) -> Cell:
    """Share of images, pixels or boxes with the same best class."""
    if proof.iou is not None:
        return _number(proof.iou, "IoU {:.3f}")
    return _number(proof.top1_agreement, "{:.1%}")


def _number(value: float | None, form: str) -> Cell:
    return Cell("-" if value is None else form.format(value), number=True)


def _failed_row(name: str) -> list[Cell]:
    empty = [Cell("-", "muted")] * (len(_COLUMNS) - 2)
    return [Cell(name, mono=True), Cell("FAILED", "bad", badge=True), *empty]


def _drop(file: ExportedFile, accuracy: Accuracy) -> list[Cell]:
    return [
        Cell(file.name, mono=True),
        Cell(f"{accuracy.metric} {accuracy.score:.2f}", number=True),
        _number(accuracy.float_score, "{:.2f}"),
        _number(accuracy.drop, "{:.2f} points"),
        _number(accuracy.max_drop, "{:g}"),
        Cell(", ".join(accuracy.kept_float) or "nothing", mono=True),
    ]
