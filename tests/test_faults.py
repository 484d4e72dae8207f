"""Real faults at random moments of commands; the long version is `python -m benchmarks.faults`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ten kills and a few other faults; commands are forked from one process, so it is quick."""
    folder = tmp_path_factory.mktemp("faults")
    seed = random.randrange(2**31)  # any: the promise does not depend on it
    options = ["--moments", "10", "--least", "1", "--faults", "kill,ctrl_c,full_disk"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.faults", *options),
            *("--seed", str(seed), "--folder", str(folder), "--json", str(folder / "out.json")),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (folder / "out.json").is_file(), done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("fault", "trials"), [("kill", 10), ("ctrl_c", 1), ("full_disk", 1)])
def test_nothing_is_lost_and_no_socket_is_opened(
    outcome: dict[str, Any], fault: str, trials: int
) -> None:
    (row,) = [row for row in outcome["rows"] if row["fault"] == fault]

    assert row["trials"] == trials
    assert row["wrong"] == [], f"seed {outcome['seed']}"
    assert fault != "kill" or row["struck"] >= 3, f"seed {outcome['seed']}"
