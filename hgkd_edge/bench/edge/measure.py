"""Measure models on edge devices, here or over SSH, from connection to session.

Several devices are measured into one table, `--hosts fleet.yaml`:

    hosts:
      - host: nvidia@orin.local
      - host: nvidia@xavier.local:2222
        name: bench xavier          # shown in the table; default: the host

They are measured one after the other; one that fails is listed with its reason and does not stop
the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hgkd_edge.bench.edge.facts import board_from_facts
from hgkd_edge.bench.edge.job import make_job
from hgkd_edge.bench.edge.link import WorkFailed, open_link
from hgkd_edge.bench.edge.results import measured_by_onnxruntime, measured_by_trtexec
from hgkd_edge.bench.edge.ssh import Host
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Refusal, Session
from hgkd_edge.bench.session import session_of
from hgkd_edge.errors import DeviceError, UserError, reason_of
from hgkd_edge.parsing import MAX_SETTINGS_BYTES, parse_yaml, read_text

__all__ = ["is_jetson_here", "load_fleet", "measure_fleet", "measure_on"]

Progress = Callable[[str, float], None]


def is_jetson_here() -> bool:
    """Whether this machine is a Jetson, by its device tree and L4T release file."""
    facts = {}
    for name in ("etc/nv_tegra_release", "sys/firmware/devicetree/base/compatible"):
        with suppress(OSError):
            root = Path(os.environ.get("HGKD_EDGE_SYSROOT", "/"))
            facts[Path(name).name] = (root / name).read_text(errors="replace")
    return board_from_facts(facts).is_jetson


def measure_on(
    host: Host | None,
    models: Sequence[ModelFile],
    options: BenchOptions,
    *,
    progress: Progress,
) -> Session:
    """Build and measure on `host`, or on this machine when None.

    Raises:
        DeviceError: The device cannot be reached or cannot run the request.
        WorkFailed: The work failed there, its outputs are wrong, or the connection broke.
    """
    with (
        open_link(host, tell=progress, config=options.ssh_config) as link,
        _understood(link.where),
    ):
        facts = link.facts()
        board = board_from_facts(facts)
        job = make_job(models, options, facts, where=link.where)
        link.open(job.id, job.files, resume=options.resume, cases=len(job.cases))
        environment, warnings = board.environment(facts), board.warnings()
        if job.trtexec:
            measured = measured_by_trtexec(link, job, options)
            environment["trtexec"] = job.trtexec.name
            if any(options.threads):
                warnings.append("--threads has no effect with trtexec")
        else:
            measured = measured_by_onnxruntime(link, job, options, facts["onnxruntime"])
        return session_of(
            str(host) if host else "jetson",
            options,
            measured,
            models=models,
            environment=environment,
            warnings=warnings,
        )


@contextmanager
def _understood(where: str) -> Iterator[None]:
    """A device may send anything; unusable data is an error of that device only."""
    try:
        yield
    except OSError as error:
        raise WorkFailed(
            f"the connection to {where} broke: {reason_of(error)}",
            hint="the same command with --resume picks up a finished build",
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WorkFailed(
            f"{where} cannot be measured: its answer cannot be used ({reason_of(error)})",
            hint="log in there and check what runs; --debug shows where reading it stopped",
        ) from error


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
    hint = "a fleet file holds 'hosts:', a list of entries with 'host: user@machine'"
    try:
        fleet = _Fleet.model_validate(parse_yaml(read_text(path, MAX_SETTINGS_BYTES)))
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}", hint="check --hosts") from error
    except yaml.YAMLError as error:
        raise DeviceError(f"{path} is not YAML: {reason_of(error)}", hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DeviceError(f"{path}: {where}: {first['msg']}", hint=hint) from error
    except ValueError as error:
        raise DeviceError(f"{path}: {reason_of(error)}", hint=hint) from error
    pairs = [(entry.name or entry.host, Host.parse(entry.host)) for entry in fleet.hosts]
    names = [name for name, _host in pairs]
    if not pairs:
        raise DeviceError(f"{path} names no host", hint=hint)
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

    Each session is passed to `keep` when done, so that an interruption loses one device only.

    Raises:
        DeviceError: None could be measured.
    """
    sessions, refusals = [], []
    for name, host in fleet:
        try:
            session = measure_on(host, models, options, progress=progress)
            sessions.append(session.model_copy(update={"target": name}))
            keep(sessions[-1])
        except UserError as error:
            refusals.append(Refusal(name=name, reason=error.message, hint=error.hint))
    if not sessions:
        raise DeviceError(
            "no device of the fleet could be measured: "
            + "; ".join(f"{one.name}: {one.reason}" for one in refusals),
            hint=refusals[0].hint,
        )
    return sessions, refusals
