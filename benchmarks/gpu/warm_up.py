"""Compile the Triton kernels of every network before the measurements.

    python -m benchmarks.gpu.warm_up resnet50 [--dry]

One pass of the encoder compiles a kernel for each of its layer shapes, about a second each. The
batch size does not matter. Networks are compiled in parallel, one process each. Triton caches the
kernels on disk, where the measurements find them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from benchmarks.gpu.encoder import one_pass
from benchmarks.gpu.measure import DRY, FULL, Scale

__all__ = ["compile_all"]

BATCH = 2


def compile_all(scale: Scale, seconds: float) -> dict[str, Any]:
    """Compile time, and which networks failed or did not finish in time.

    Args:
        scale: Measurement scale.
        seconds: Time after which the processes are ended.
    """
    begin, dry = time.monotonic(), ["--dry"] if scale is DRY else []
    running = {
        name: subprocess.Popen([sys.executable, "-m", "benchmarks.gpu.warm_up", name, *dry])
        for name in scale.networks
    }
    try:
        for process in running.values():
            process.wait(timeout=max(0.1, begin + seconds - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass  # finished kernels are on disk; others are compiled on use
    finally:
        for process in running.values():
            process.kill()
    failed = [name for name, process in running.items() if process.wait()]
    return {"seconds": round(time.monotonic() - begin, 1), "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description="compile the kernels of one network")
    parser.add_argument("network")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    one_pass(arguments.network, replace(DRY if arguments.dry else FULL, batch=BATCH))


if __name__ == "__main__":
    main()
