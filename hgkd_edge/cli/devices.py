"""The command `devices`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson
from hgkd_edge.cli.output import show


def devices(as_json: AsJson = False) -> None:
    """List known edge devices, and the runners of this machine.

    Example: hgkd-edge devices
    """
    from hgkd_edge.bench.devices import devices_view, load_devices, load_jetpacks, load_sources
    from hgkd_edge.bench.runners import list_runners

    runners = [(name, refusal.reason if refusal else None) for name, refusal in list_runners()]
    result = {
        "devices": [one.model_dump(by_alias=True) for one in load_devices()],
        "jetpacks": [one.model_dump() for one in load_jetpacks()],
        "sources": load_sources(),
        "runners": [{"name": name, "refusal": reason} for name, reason in runners],
    }
    show(result, as_json, lambda: [devices_view(runners)])
