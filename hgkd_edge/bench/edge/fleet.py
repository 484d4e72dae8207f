"""Several devices, one table: `--hosts fleet.yaml`.

    hosts:
      - host: nvidia@orin.local
      - host: nvidia@xavier.local:2222
        name: bench xavier          # shown in the table; default: the host

Devices are measured one after the other; one that fails is listed with its reason and does not
stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hgkd_edge.bench.edge.measure import measure_on
from hgkd_edge.bench.edge.ssh import Host
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Refusal, Session
from hgkd_edge.errors import DeviceError, HgkdError, reason_of
from hgkd_edge.parsing import MAX_SETTINGS_BYTES, parse_yaml, read_text

__all__ = ["load_fleet", "measure_fleet"]

Progress = Callable[[str, float], None]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    host: str
    name: str | None = None


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    hosts: list[_Entry]


def load_fleet(path: Path) -> list[tuple[str, Host]]:
    """(name, host) pairs of a fleet file.

    Raises:
        DeviceError: The file is missing, not of this form, empty, or names a host twice.
    """
    mend = "a fleet file holds 'hosts:', a list of entries with 'host: user@machine'"
    try:
        fleet = _Fleet.model_validate(parse_yaml(read_text(path, MAX_SETTINGS_BYTES)))
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}", hint="check --hosts") from error
    except yaml.YAMLError as error:
        raise DeviceError(f"{path} is not YAML: {reason_of(error)}", hint=mend) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DeviceError(f"{path}: {where}: {first['msg']}", hint=mend) from error
    except ValueError as error:
        raise DeviceError(f"{path}: {reason_of(error)}", hint=mend) from error
    pairs = [(entry.name or entry.host, Host.parse(entry.host)) for entry in fleet.hosts]
    names = [name for name, _host in pairs]
    if not pairs:
        raise DeviceError(f"{path} names no host", hint=mend)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DeviceError(f"{path} names '{twice}' twice", hint="give each entry its own name")
    return pairs


def measure_fleet(
    fleet: Sequence[tuple[str, Host]],
    models: Sequence[ModelFile],
    options: BenchOptions,
    *,
    keep: Callable[[Session], object],
    progress: Progress,
) -> tuple[list[Session], list[Refusal]]:
    """A session for each device that could be measured, a refusal for each that could not.

    Each session is handed to `keep` as it comes, so that an interruption costs one device only.

    Raises:
        DeviceError: None could be measured.
    """
    sessions, refusals = [], []
    for name, host in fleet:
        try:
            session = measure_on(host, models, options, progress=progress)
            sessions.append(session.model_copy(update={"target": name}))
            keep(sessions[-1])
        except HgkdError as error:
            refusals.append(Refusal(name=name, reason=error.message, hint=error.hint))
    if not sessions:
        raise DeviceError(
            "no device of the fleet could be measured: "
            + "; ".join(f"{one.name}: {one.reason}" for one in refusals),
            hint=refusals[0].hint,
        )
    return sessions, refusals
