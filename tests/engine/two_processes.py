"""The same training by two processes, eager and recorded; `test_graph.py` starts this file.

torchrun --nproc-per-node 2 -m tests.engine.two_processes FOLDER '{"accumulate": 2}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from hgkd_edge.engine import exchange, loop
from hgkd_edge.processes import end
from tests.engine.helpers import Masks, run, tiny_source
from tests.tracing import record


def main() -> None:
    folder, more = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    run(Masks(changes=0.5), tiny_source(), folder / "eager", **more)
    rank = distributed.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        made, wrapped, averaged = record(patch), [], []
        patch.setattr(
            nn.parallel.DistributedDataParallel, "forward", lambda *_: wrapped.append(True)
        )
        patch.setattr(
            loop,
            "average_gradients",
            lambda model: (averaged.append(True), exchange.average_gradients(model)),
        )
        task = Masks(changes=0.5)
        if rank:  # every process starts as the first
            nn.init.zeros_(task.model.layers[0].weight)
        run(task, tiny_source(), folder / "recorded", **more)
    assert (wrapped, len(averaged)) == ([], 40)
    (folder / f"rank{rank}.json").write_text(json.dumps([len(made[0].traces), made[0].replays]))


if __name__ == "__main__":
    main()
    end(0)  # as the command line does
