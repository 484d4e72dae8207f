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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from hgkd_edge.bench.edge.by_onnxruntime import OnnxRuntimeJob
from hgkd_edge.bench.edge.by_trtexec import TrtexecJob
from hgkd_edge.bench.edge.facts import clock_warnings, machine_of
from hgkd_edge.bench.edge.job import Job, make_cases
from hgkd_edge.bench.edge.link import open_link
from hgkd_edge.bench.edge.ssh import Host
from hgkd_edge.bench.edge.trtexec import Trtexec
from hgkd_edge.bench.measurement import session_of
from hgkd_edge.bench.models import ModelFile, for_tensorrt
from hgkd_edge.bench.options import BenchOptions, Progress
from hgkd_edge.bench.records import Refusal, Session
from hgkd_edge.errors import DeviceError, UserError, WorkFailed, reason_of
from hgkd_edge.yaml_settings import Section, parse_settings, read_settings

__all__ = ["load_fleet", "make_job", "measure_hosts"]


def measure_hosts(
    hosts: Mapping[str, Host | None],
    models: Sequence[ModelFile],
    options: BenchOptions,
    *,
    keep: Callable[[Session], object],
    progress: Progress,
) -> tuple[list[Session], list[Refusal]]:
    """A session for each device that could be measured, a refusal for each that could not.

    Args:
        hosts: By their names in the table; None is this machine.
        keep: Called with each session when it is done, so that an interruption loses one device
            only.

    Raises:
        UserError: The only one, or none of several, could be measured.
    """
    sessions, refusals = [], []
    for name, host in hosts.items():
        try:
            sessions.append(_measure_on(name, host, models, options, progress))
            keep(sessions[-1])
        except UserError as error:
            if len(hosts) == 1:
                raise
            refusals.append(Refusal.of(name, error))
    if not sessions:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in refusals)
        raise DeviceError(f"no device could be measured: {reasons}", hint=refusals[0].hint)
    return sessions, refusals


def _measure_on(
    name: str,
    host: Host | None,
    models: Sequence[ModelFile],
    options: BenchOptions,
    progress: Progress,
) -> Session:
    """Build and measure on one device.

    Raises:
        DeviceError: The device cannot be reached or cannot run the request.
        WorkFailed: The work failed there, its outputs are wrong, or the connection broke.
    """
    with (
        open_link(host, tell=progress, config=options.ssh_config) as link,
        _understood(link.where),
    ):
        facts = link.facts()
        machine = machine_of(facts)
        job = make_job(models, options, facts, where=link.where)
        _require_room(facts, job, link.where)
        link.open(job.id, job.files, resume=options.resume, cases=len(job.cases))
        measured, warnings = job.follow(link), clock_warnings(machine)
        if isinstance(job, TrtexecJob):
            machine.trtexec = measured[0].runner_version
            if any(options.threads):
                warnings.append("--threads has no effect with trtexec")
        return session_of(
            name,
            options,
            measured,
            models=models,
            machine=machine,
            refusals=job.refusals,
            warnings=warnings,
        )


def make_job(
    models: Sequence[ModelFile], options: BenchOptions, facts: Mapping[str, str], *, where: str
) -> Job:
    """Plan the measurement for a device from its facts: by trtexec if present, else by onnxruntime.

    Raises:
        DeviceError: The device has neither, or cannot run the request.
        RunError: No model of the wanted precision.
    """
    if program := facts.get("trtexec"):
        tool = Trtexec.from_help(facts.get("trtexec_help", ""))
        models, refusals = for_tensorrt(models)
        if not models:
            raise DeviceError(f"{refusals[0].name}: {refusals[0].reason}", hint=refusals[0].hint)
        cases, files = make_cases(models, options, "trtexec")
        return TrtexecJob(cases, files, options, tool, program, refusals)
    version = facts.get("onnxruntime", "")
    if not version[:1].isdigit():
        raise DeviceError(
            f"{where} has neither trtexec nor a Python with numpy and onnxruntime",
            hint="on a Jetson: sudo apt install libnvinfer-bin; elsewhere: pip install onnxruntime",
        )
    cases, files = make_cases(models, options, "ort-cpu")
    return OnnxRuntimeJob(cases, files, options, version)


def _require_room(facts: Mapping[str, str], job: Job, where: str) -> None:
    items = job.files.values()
    size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in items)
    free = int(facts["free"].split()[-3]) << 10  # of `df -P`: ... available, percent, mounted on
    if free < 4 * size:
        raise WorkFailed(
            f"on {where}: {free >> 20} MB free on the device, about {4 * size >> 20} MB needed",
            hint="free some space in the home folder there",
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


class _Entry(Section):
    host: str
    name: str = ""


class _Fleet(Section):
    hosts: list[_Entry] = Field(min_length=1)


def load_fleet(path: Path) -> dict[str, Host | None]:
    """Hosts of a fleet file, by their names in the table.

    Raises:
        RecipeError: The file is missing or not of this form.
        DeviceError: It names a host that is none, or one twice.
    """
    entries = parse_settings(_Fleet, read_settings(path), name=str(path)).hosts
    fleet: dict[str, Host | None] = {one.name or one.host: Host.parse(one.host) for one in entries}
    if len(fleet) < len(entries):
        raise DeviceError(f"{path}: two hosts have the same name", hint="give each a 'name:'")
    return fleet
