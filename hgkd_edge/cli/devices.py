"""The command `devices`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson
from hgkd_edge.cli.output import show


def devices(as_json: AsJson = False) -> None:
    """List known edge devices, and the runners of this machine.

    Example: hgkd-edge devices
    """
    from hgkd_edge.bench.devices import device_table, devices_view
    from hgkd_edge.bench.local import list_runners

    runners = [(name, refusal.reason if refusal else None) for name, refusal in list_runners()]
    table = device_table()
    result = {
        "devices": [one.model_dump(by_alias=True) for one in table.devices],
        "jetpacks": [one.model_dump() for one in table.jetpacks],
        "sources": table.sources,
        "runners": [{"name": name, "refusal": reason} for name, reason in runners],
    }
    show(result, as_json, lambda: [devices_view(runners)])
