"""Files of a session that failed verification or changed, and the baseline for the others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from exporters.errors import ExportError
from exporters.files import aside_of, was_set_aside
from exporters.network_files import network_digest
from hgkd_edge.bench.records import Measurement, Session
from hgkd_edge.bench.stats import ratio_of

__all__ = ["FAILED_SINCE", "failed_models", "outdated_models", "with_fp32_baseline"]

FAILED_SINCE = "failed verification since it was measured"
_CHANGED_SINCE = "has changed since it was measured"
BAKED = "hgkd_edge.baked"  # metadata key of a file with processing inside


def failed_models(session: Session, known: Collection[str] = ()) -> frozenset[str]:
    """Labels of models that failed verification: after export, on the device, or as `known`.

    Args:
        session: As measured.
        known: Names of files that failed, such as `demo.int8-cpu.onnx`.
    """
    here = {m.label for m in session.models if was_set_aside(m.path) or Path(m.path).name in known}
    device = {one.model for one in session.measurements if _failed_on_device(one)}
    return frozenset(here | device)


def outdated_models(session: Session, bench: Path) -> dict[str, str]:
    """Models whose file differs from the measured one: label -> what changed.

    A file that is not on this machine is not listed.

    Args:
        session: As measured.
        bench: Its bench.json; models are in `export/` next to it, or where they were measured.
    """
    found = {}
    for model in session.models:
        if was_set_aside(model.path):  # it had failed already
            continue
        inside = bench.parent / "export" / Path(model.path).name
        for file in (inside, Path(model.path)):
            if file.is_file() or aside_of(file).is_file():
                if what := _what_happened(file, model.sha256):
                    found[model.label] = what
                break
    return found


def _what_happened(file: Path, sha256: str) -> str:
    if not file.is_file():
        return FAILED_SINCE
    try:
        return "" if network_digest(file) == sha256 else _CHANGED_SINCE
    except (ExportError, OSError):  # a file of it is missing or no longer a network
        return _CHANGED_SINCE


def with_fp32_baseline(session: Session, failed: Collection[str] = ()) -> Session:
    """The session with ratios relative to the plain fp32 file; unchanged if there is none.

    Args:
        session: As measured, possibly with another baseline.
        failed: Labels of models that cannot be the baseline.
    """
    baked = {model.label for model in session.models if BAKED in model.metadata}
    unfit = {*failed, *baked}
    base = next(
        (m for m in session.measurements if m.precision == "fp32" and m.model not in unfit), None
    )
    if base is None or len(session.measurements) < 2:
        return session
    measurements = [_compared(one, base) for one in session.measurements]
    return session.model_copy(update={"measurements": measurements})


def _compared(one: Measurement, base: Measurement) -> Measurement:
    if one.ratio is None or one.ratio.to == base.case:
        return one
    mine, theirs = one.rounds_p50_ms, base.rounds_p50_ms
    ratio = None
    if len(mine) == len(theirs):
        ratio = ratio_of(
            [np.array([t]) for t in mine], [np.array([t]) for t in theirs], name=base.case
        )
    return one.model_copy(update={"ratio": ratio})


def _failed_on_device(one: Measurement) -> bool:
    return one.verification is not None and not one.verification.passed
