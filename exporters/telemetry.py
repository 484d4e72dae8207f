"""Keeps the runtimes from reporting to their makers, which is their default."""

from __future__ import annotations

import os
import sys

__all__ = ["forbid_telemetry"]


def forbid_telemetry() -> None:
    """Turn the telemetry of ONNX Runtime and OpenVINO off, before they are imported.

    ONNX Runtime (from 1.29 on; `Privacy.md` in its package) reports to Microsoft, among others the
    names of model files, and keeps an identity below `~/.cache`. It reads the variable as it loads;
    child processes inherit it. OpenVINO reports its import and each conversion to Google Analytics.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"
    # None is what makes Python refuse an import. OpenVINO then takes its stub, which sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
