"""Break every command with real faults, and check that nothing is lost.

    python -m benchmarks.faults [--moments 100] [--faults kill,ctrl_c] [--jobs distill,export]
                                [--seed 0] [--folder DIR] [--json FILE]

`kill` is tried at `--moments` random moments, spread over the jobs; every other fault at a tenth as
many, at least once per job. After each fault:

- every file under its final name is whole: it loads, and the manifest's sha256 matches;
- the command ended with a documented exit code and one line, never a traceback;
- `--resume`, or the same command again, gives the uninterrupted result, bit for bit;
- the next command works, and no temporary file is left; after a kill, SIGTERM or Ctrl-C, in half of
  the trials another command runs before the job continues;
- Python opened no socket: no recipe here asks for one.

"struck" counts the trials in which the fault met the command: some jobs end before a signal, do
not decode, or have no run yet. Exit status 1 if anything is wrong. The seed is printed: the same
seed gives the same moments.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order: results are equal bit for bit

from benchmarks.faults import child, jobs
from benchmarks.faults.faults import FAULTS, Trial


def main() -> int:
    options = _options()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    child.preload()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="faults-") as place:
        root, now = Path(place), Path(place) / "now"
        now.mkdir()
        root.chmod(0o755)  # one fault runs as another user
        stages = [s for s in jobs.prepare(root, now) if s.job.name in options.jobs]
        print("uninterrupted:", *(f"{s.job.name} {s.seconds:.1f} s" for s in stages), flush=True)
        rows = _try_all(options, stages, now, random.Random(seed))
    if options.json:
        options.json.write_text(json.dumps({"seed": seed, "rows": rows}, indent=2) + "\n")
    return int(any(row["wrong"] for row in rows))


def _try_all(
    options: argparse.Namespace, stages: list[jobs.Stage], now: Path, chance: random.Random
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for fault in FAULTS:
        name = fault.__name__
        if name not in options.faults:
            continue
        moments = options.moments if name == "kill" else options.moments // 10
        first = chance.randrange(len(stages))
        count = max(moments, options.least)
        chosen = [stages[(first + i) % len(stages)] for i in range(count)]
        began, struck, wrong = time.monotonic(), 0, list[str]()
        for stage in chosen:
            trial = Trial(stage, now, chance)
            found = fault(trial)
            struck += trial.struck
            for line in found:
                print(f"{name}, {stage.job.name} at {trial.moment:.3f} s: {line}", flush=True)
            wrong += found
        seconds = time.monotonic() - began
        verdict = f"{len(wrong)} wrong" if wrong else "nothing lost"
        print(
            f"{name:<13} {count:>4} trials, {struck:>3} struck {seconds:6.0f} s  {verdict}",
            flush=True,
        )
        rows.append({"fault": name, "trials": count, "struck": struck, "wrong": wrong})
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    faults, verbs = [f.__name__ for f in FAULTS], [job.name for job in jobs.JOBS]
    parser.add_argument("--moments", type=int, default=100, help="of kill -9 [default: 100]")
    parser.add_argument("--least", type=int, default=len(verbs), help="trials of other faults")
    parser.add_argument("--faults", type=_names(faults), default=faults, help=",".join(faults))
    parser.add_argument("--jobs", type=_names(verbs), default=verbs, help=",".join(verbs))
    parser.add_argument("--seed", type=int, help="of the moments [default: any]")
    parser.add_argument("--folder", type=Path, help="where to work [default: TMPDIR]")
    parser.add_argument("--json", type=Path, help="write the outcome here")
    return parser.parse_args()


def _names(known: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
