"""Measure models on one edge device, here or over SSH, from the greeting to the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hgkd_edge.bench.edge.agent import facts as agent_facts
from hgkd_edge.bench.edge.facts import board_from_facts
from hgkd_edge.bench.edge.job import make_job
from hgkd_edge.bench.edge.limits import MOST_SHOWN
from hgkd_edge.bench.edge.link import AgentFailed, open_link
from hgkd_edge.bench.edge.results import session_from
from hgkd_edge.bench.edge.ssh import Host
from hgkd_edge.bench.edge.stream import Event, StreamFault
from hgkd_edge.bench.edge.verification import Verifier
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Session
from hgkd_edge.errors import reason_of

__all__ = ["is_jetson_here", "measure_on"]

Progress = Callable[[str, float], None]


def is_jetson_here() -> bool:
    """Whether this machine is a Jetson, by its device tree and L4T release file."""
    return board_from_facts(
        {
            name: agent_facts.read(agent_facts.FILES[name])
            for name in ("nv_tegra_release", "compatible")
        }
    ).is_jetson


def measure_on(
    host: Host | None,
    models: Sequence[ModelFile],
    options: BenchOptions,
    *,
    progress: Progress,
) -> Session:
    """Build and measure on `host`, or on this machine when None.

    Raises:
        DeviceError: The device cannot be reached or cannot do what was asked.
        AgentFailed: The work failed there, its outputs are wrong, or the connection broke.
    """
    with open_link(host, config=options.ssh_config) as link, _understood(link.where):
        progress(f"{link.where}: connecting", 0.0)
        facts = link.hello()
        board = board_from_facts(facts)
        job = make_job(models, options, facts, where=link.where)
        verifier = Verifier(
            {case.id: case.probe for case in job.cases},
            {case.id: (case.name, case.precision, job.trtexec is not None) for case in job.cases},
            unverified=options.unverified,
        )
        results = link.work(job.message, job.payload, _teller(link.where, progress), verifier)
        return session_from(
            str(host) if host else "jetson",
            job,
            results,
            verifications=verifier.found,
            models=models,
            options=options,
            facts=facts,
            board=board,
        )


@contextmanager
def _understood(where: str) -> Iterator[None]:
    """What a device sends may be anything; what cannot be used is that device's fault only."""
    try:
        yield
    except OSError as error:
        raise AgentFailed(
            f"the connection to {where} broke: {reason_of(error)}",
            hint="the same command with --resume picks up a finished build",
        ) from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        StreamFault,
        RecursionError,
    ) as error:
        raise AgentFailed(
            f"{where} cannot be measured: its answer is not an agent's ({reason_of(error)})",
            hint="log in there and see what runs; --debug shows where reading it stopped",
        ) from error


def _teller(where: str, progress: Progress) -> Callable[[Event], None]:
    """Agent events as one line of progress."""

    def tell(event: Event) -> None:
        kind = event["event"]
        if kind == "upload":
            progress(f"{where}: upload", event["sent"] / max(1, event["of"]))
        elif kind == "build":
            progress(f"{where}: {'engine found' if event['reused'] else 'building'}", 0.0)
        elif kind == "working":
            progress(f"{where}: {event['seconds']:.0f} s: {event['line'][-60:]}", 0.0)
        elif kind == "outputs":
            progress(f"{where}: verifying", 0.0)
        elif kind == "waiting":
            progress(f"{where}: {event['reason'][:MOST_SHOWN]}", 0.0)
        elif kind == "round":
            progress(f"{where}: measuring", event["done"] / event["of"])

    return tell
