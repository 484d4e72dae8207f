"""Exports of a run with a full set of options."""

from __future__ import annotations

from hgkd_edge.api.result import Result
from hgkd_edge.api.work import require_training_packages
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.rundir import RunDir
from hgkd_edge.tables import export_lines

__all__ = ["export"]


def export(folder: RunDir, options: ExportOptions) -> Result:
    """Export a run's model and verify every file; as `Run.export`, with all options.

    Raises:
        ExportError: The fp32 file failed.
        ExportIncomplete: Other files failed; its `result` lists both.
    """
    require_training_packages("export")
    from hgkd_edge.export import export_run

    record = export_run(folder, options)
    return Result(record.to_dict(), lambda: export_lines(record))
