"""The command `predict`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson, Images, TrustEngine
from hgkd_edge.cli.output import show


def predict(
    model: Annotated[
        Path, typer.Argument(help="Run folder or name, model.safetensors, .onnx, .xml or .plan.")
    ],
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for pictures and JSON.")] = Path("predictions"),
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Lowest score of a box, or of a saved label [default: 0.4].", min=0, max=1
        ),
    ] = None,
    save_labels: Annotated[
        str, typer.Option(help="Also save a data set of the answers: yolo, coco, voc or folders.")
    ] = "",
    trust_engine: TrustEngine = False,
    as_json: AsJson = False,
) -> None:
    """Label, segment or find objects in photos with a fine-tuned model; pictures and JSON.

    Example: hgkd-edge predict runs/demo/export/demo.fp32.onnx photos/
    """
    from hgkd_edge import predict as verb

    chosen = {} if threshold is None else {"threshold": threshold}
    records = verb.predict(
        model, images, out, trust_engine=trust_engine, save_as=save_labels, **chosen
    )
    show(records, as_json, lambda: [*map(_answer_line, records), f"pictures and JSON: {out}"])


def _answer_line(record: dict[str, Any]) -> str:
    """One photo's answer in one line."""
    from hgkd_edge.tables import percent

    if "error" in record:
        return f"{record['photo']}: {record['error']}"
    if "labels" in record:
        best = record["labels"][0]
        return f"{record['photo']}: {best['name']} {percent(best['probability'])}"
    if "shares" in record:
        shares = [f"{name} {percent(share)}" for name, share in record["shares"].items() if share]
        return f"{record['photo']}: {', '.join(shares)}"
    counts = Counter(box["name"] for box in record["boxes"])
    found = [f"{count} {name}" for name, count in counts.items()]
    return f"{record['photo']}: {', '.join(found) or 'nothing found'}"
