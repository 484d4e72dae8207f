"""Parse tegrastats of every generation from Nano to Thor, and summarize a run.

The format is not documented as stable and differs by release (no date on JetPack 4, no units on
its rails, lists of clocks on Orin, no load on Thor): each part is parsed separately, and a line
without any known part is counted as rejected. `device.sh` runs it on the device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hgkd_edge.bench.records import Rail, Telemetry

__all__ = ["Sample", "is_temperature", "parse_line", "telemetry_of"]

# Rails that are the whole module, or, on Thor, the whole board (VIN); the rest are parts of them.
# Without one of them the rails are added up.
_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
# Rails measured behind another rail: "VDDQ_VDD2_1V8AO power is also included in VIN_SYS_5V0 power"
# (NVIDIA, Jetson Linux Developer Guide r36, AGX Orin's INA3221).
_PART_OF = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
# Memory looks like a rail; NC is a sensor channel that is "not connected".
_NO_RAILS = re.compile(r"RAM|SWAP|IRAM|NC(_?\d+)?", re.IGNORECASE)

# NAME now/average[/peak], mW; JetPack 4 omits the unit.
_RAIL = re.compile(r"(?<!\S)([A-Za-z]\w*) (\d+)(?:mW)?/(\d+)(?:mW)?(?:/\d+(?:mW)?)?(?!\S)")
_LONE_RAIL = re.compile(r"(?<!\S)([A-Za-z]\w*) (\d+)mW(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?!\S)")
_RAM = re.compile(r"(?<!\S)RAM (\d+)/(\d+)MB")
_GPU = re.compile(r"(?<!\S)GR3D_FREQ (?:(\d+)%)?(?:@(?:\[([\d,]+)\]|(\d+)))?")
_EMC = re.compile(r"(?<!\S)EMC_FREQ (?:(\d+)%)?(?:@(\d+))?")


@dataclass(frozen=True)
class Sample:
    """One line: rails in mW, temperatures in C, clocks in MHz, load in %, RAM in MB."""

    rails_mw: dict[str, int] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    gpu_mhz: int | None = None
    gpu_load: int | None = None
    emc_mhz: int | None = None
    ram_mb: int | None = None

    def total_mw(self) -> tuple[str, int] | None:
        """(which rail or rails, mW) of the whole, nothing counted twice; None without any rail."""
        for name in _TOTALS:
            if name in self.rails_mw:
                return name, self.rails_mw[name]
        if not self.rails_mw:
            return None
        parts = {
            name: mw
            for name, mw in self.rails_mw.items()
            if _PART_OF.get(name) not in self.rails_mw
        }
        return "+".join(sorted(parts)), sum(parts.values())


def parse_line(line: str) -> Sample | None:
    """One line of tegrastats; None when it holds nothing known."""
    rails = {name: int(now) for name, now, _average in _RAIL.findall(line)}
    rails |= {name: int(now) for name, now in _LONE_RAIL.findall(line) if name not in rails}
    rails = {name: mw for name, mw in rails.items() if not _NO_RAILS.fullmatch(name)}
    temperatures = {
        name: float(value)
        for name, value in _TEMPERATURE.findall(line)
        if is_temperature(name, float(value))
    }
    ram, gpu, emc = _RAM.search(line), _GPU.search(line), _EMC.search(line)
    gpu_mhz = None
    if gpu and (gpu[2] or gpu[3]):
        # Orin and Thor list one clock per GPC; the fastest is the active one.
        gpu_mhz = max(int(clock) for clock in (gpu[2] or gpu[3]).split(",") if clock)
    sample = Sample(
        rails_mw=rails,
        temperatures_c=temperatures,
        gpu_mhz=gpu_mhz,
        gpu_load=int(gpu[1]) if gpu and gpu[1] else None,
        emc_mhz=int(emc[2]) if emc and emc[2] else None,
        ram_mb=int(ram[1]) if ram else None,
    )
    return None if sample == Sample() else sample


def is_temperature(zone: str, celsius: float) -> bool:
    """Whether a zone was measured: PMICs (`PMIC` here, `PMIC-Die` in sysfs) read a constant, and a
    sensor that is off reads -256."""
    return not zone.startswith("PMIC") and celsius > -100


def telemetry_of(
    lines: Sequence[tuple[float, str]],
    *,
    throughput_ips: float,
    idle: Sequence[tuple[float, str]] = (),
    overcurrent: dict[str, int] | None = None,
) -> Telemetry | None:
    """The board's telemetry during the measured runs.

    Args:
        lines: (seconds, line) within the measured part only.
        throughput_ips: Images per second over the same part, for the energy per image.
        idle: Lines from just before, with nothing running.
        overcurrent: Over-current throttling events during the run, by counter.

    Returns:
        None if there is no usable line.
    """
    parsed = [parse_line(line) for _time, line in lines]
    samples = [sample for sample in parsed if sample is not None]
    if not samples:
        return None
    total_rail, totals_w = _totals(samples)
    mean_w = _mean(totals_w)
    reasons = _throttling(samples, overcurrent or {})
    return Telemetry(
        source="tegrastats",
        samples=len(samples),
        rejected_lines=len(parsed) - len(samples),
        interval_ms=100.0,  # as the script asks for
        rails=_rails(samples),
        total_rail=total_rail,
        total_mean_w=mean_w,
        total_peak_w=max(totals_w, default=None),
        idle_w=_idle_w(idle),
        energy_per_image_mj=mean_w / throughput_ips * 1000 if mean_w else None,
        gpu_mhz=_range([one.gpu_mhz for one in samples]),
        emc_mhz=_range([one.emc_mhz for one in samples]),
        gpu_load_percent=_mean([one.gpu_load for one in samples]),
        temperature_max_c=_hottest(samples),
        ram_peak_mb=max((one.ram_mb for one in samples if one.ram_mb is not None), default=None),
        throttled=bool(reasons),
        throttle_reasons=reasons,
    )


def _totals(samples: Sequence[Sample]) -> tuple[str | None, list[float]]:
    """The rail or rails that make the total, and the total's W per sample.

    A line cut off before the board's total would be summed from its rails: such outliers are
    skipped, not averaged with the rest.
    """
    found = [total for sample in samples if (total := sample.total_mw())]
    if not found:
        return None, []
    rail = Counter(name for name, _mw in found).most_common(1)[0][0]
    return rail, [mw / 1000 for name, mw in found if name == rail]


def _rails(samples: Sequence[Sample]) -> dict[str, Rail]:
    names = dict.fromkeys(name for sample in samples for name in sample.rails_mw)
    seen = {}
    for name in names:
        watts = [one.rails_mw[name] / 1000 for one in samples if name in one.rails_mw]
        seen[name] = Rail(mean_w=sum(watts) / len(watts), peak_w=max(watts))
    return seen


def _throttling(samples: Sequence[Sample], overcurrent: dict[str, int]) -> list[str]:
    """Signs that the clocks were throttled while work was waiting."""
    reasons = [
        f"{count} over-current events ({name})" for name, count in overcurrent.items() if count > 0
    ]
    busy = [one.gpu_mhz for one in samples if one.gpu_mhz and _under_load(one)]
    if busy and min(busy) < 0.9 * max(busy):
        reasons.append(f"GPU clock fell from {max(busy)} to {min(busy)} MHz under load")
    return reasons


def _under_load(sample: Sample) -> bool:
    """Thor prints no load; a clock without a load is taken as active."""
    return sample.gpu_load is None or sample.gpu_load >= 80


def _idle_w(idle: Sequence[tuple[float, str]]) -> float | None:
    samples = [sample for _time, line in idle if (sample := parse_line(line))]
    return _mean(_totals(samples)[1])


def _hottest(samples: Sequence[Sample]) -> dict[str, float]:
    hottest: dict[str, float] = {}
    for sample in samples:
        for name, value in sample.temperatures_c.items():
            hottest[name] = max(value, hottest.get(name, value))
    return hottest


def _range(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"min": min(known), "mean": sum(known) / len(known), "max": max(known)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
