"""Which timm models `sparsify` accepts, and why it refuses the others.

    python -m benchmarks.sparse_coverage [--match PATTERN] [--max-parameters 30] [--json FILE]

Checks every timm architecture that offers `features_only`, without pretrained weights. "Taken"
means that `sparsify` proved it equal to the plain network (forward and gradients, everything
visible) and to the masked reference (random mask).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import timm

from hgkd_edge.errors import ConversionError
from hgkd_edge.models.meta import on_meta
from hgkd_edge.sparse import sparsify


def examine(name: str, limit: float) -> tuple[str, str]:
    """Outcome ('taken', 'refused', 'no features', 'too large', 'error') and its reason."""
    try:
        with on_meta():
            model = timm.create_model(name, features_only=True)
    except Exception as error:
        return "no features", str(error).split("\n")[0]
    if sum(p.numel() for p in model.parameters()) > limit * 1e6:
        return "too large", "not tried"
    try:
        sparsify(timm.create_model(name, features_only=True))
    except ConversionError as error:
        return "refused", error.message
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    return "taken", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="*", help="shell pattern of model names")
    parser.add_argument("--max-parameters", type=float, default=30, help="millions")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    outcomes: dict[str, tuple[str, str]] = {}
    start = time.monotonic()
    for name in timm.list_models(arguments.match):
        if time.monotonic() - start > arguments.seconds:
            break
        outcomes[name] = examine(name, arguments.max_parameters)
        kind, reason = outcomes[name]
        if kind in ("taken", "refused", "error"):
            print(f"{kind:8s} {name:40s} {reason[:160]}", flush=True)
    kinds = [kind for kind, _ in outcomes.values()]
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))})
    if arguments.json:
        arguments.json.write_text(json.dumps(outcomes, indent=1))


if __name__ == "__main__":
    main()
