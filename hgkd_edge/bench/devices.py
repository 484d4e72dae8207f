"""The table of edge devices (devices.yaml): clocks, bandwidth, peaks, power modes, with sources."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hgkd_edge.errors import DeviceError
from hgkd_edge.parsing import cut

__all__ = ["Device", "DeviceTable", "JetPack", "device_table", "devices_view", "find_devices"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Mode(_Entry):
    """A power mode: a set of clock caps, not a guaranteed wattage. `super` modes need the newer
    "super" configuration of the board; `default` is what it boots with."""

    id: int
    name: str
    gpu_mhz: int
    emc_mhz: int | None = None
    default: bool = False
    super_: bool = Field(default=False, alias="super")


class Super(_Entry):
    """The raised clocks of the "super" configuration (JetPack 6.1 on)."""

    gpu_mhz: int
    bandwidth_gbs: float
    fp16_tflops: float
    int8_tops: float


class Match(_Entry):
    """How to recognize it: words of the device tree's compatible string, then of its model."""

    compatible: list[str]
    model: list[str]


class Device(_Entry):
    """One device; `from_` names the source of each figure, `unconfirmed` those without one."""

    id: str
    name: str
    match: Match
    sms: int
    compute_capability: str
    gpu_mhz: int
    memory_gb: int
    bandwidth_gbs: float
    fp16_tflops: float
    int8_tops: float | None
    dla: int
    jetpack: str
    super_: Super | None = Field(default=None, alias="super")
    modes: list[Mode]
    unconfirmed: list[str] = Field(default_factory=list)
    from_: dict[str, str] = Field(alias="from")


class JetPack(_Entry):
    """The contents of an L4T release."""

    jetpack: str
    l4t: str
    cuda: str
    tensorrt: str
    python: str
    unconfirmed: list[str] = Field(default_factory=list)


class DeviceTable(_Entry):
    """All known devices, smallest first, and JetPack releases; source id -> where it was read."""

    sources: dict[str, str]
    jetpacks: list[JetPack]
    devices: list[Device]


@cache
def device_table() -> DeviceTable:
    """The content of devices.yaml."""
    text = resources.files("hgkd_edge.bench").joinpath("devices.yaml").read_text(encoding="utf-8")
    return DeviceTable.model_validate(yaml.safe_load(text))


def find_devices(name: str) -> list[Device]:
    """A device by its id, or all variants of a family: `orin-nano` is orin-nano-4 and -8.

    Raises:
        DeviceError: Unknown; names the nearest ids.
    """
    known = device_table().devices
    if found := [one for one in known if one.id == name or one.id.startswith(f"{name}-")]:
        return found
    near = difflib.get_close_matches(name, [one.id for one in known], n=2, cutoff=0.5)
    raise DeviceError(
        f"device '{cut(name)}' is not in the table",
        hint=f"did you mean {' or '.join(near)}? " * bool(near) + "see: hgkd-edge devices",
    )


def devices_view(runners: Sequence[tuple[str, str | None]]) -> RenderableType:
    """The table of devices, and the runners of this machine: (name, None, or why it cannot run)."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in ("device", "SMs", "cc", "MHz", "GB/s", "FP16", "INT8", "DLA", "JetPack"):
        table.add_column(name, justify="left" if name in ("device", "JetPack") else "right")
    for one in device_table().devices:
        names = "gpu_mhz", "bandwidth_gbs", "fp16_tflops", "int8_tops", "dla"
        figures = [_figure(one, name) for name in names]
        table.add_row(one.id, str(one.sms), one.compute_capability, *figures, one.jetpack)
    note = (
        "dense GPU peaks in TFLOPS and TOPS; ? = no primary source seen; power modes and sources: "
        "hgkd-edge devices --json"
    )
    here = [Text(f"  {name:<14}{reason or 'ready'}") for name, reason in runners]
    title = Text("on this machine:", style="bold")
    return Group(table, Text(note, style="dim"), title, *here)


def _figure(device: Device, key: str) -> str:
    value = getattr(device, key)
    return "-" if value is None else f"{value:g}" + ("?" if key in device.unconfirmed else "")
