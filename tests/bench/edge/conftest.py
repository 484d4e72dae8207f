"""A real sshd on loopback with its own keys, and boards simulated by stand-in tools."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hgkd_edge.bench.edge import job
from hgkd_edge.bench.edge.ssh import Host
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import BenchResult, run_bench

STANDINS = Path(__file__).parent / "standins"
SSHD = shutil.which("sshd") or next(
    (path for path in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if os.access(path, os.X_OK)), None
)


@dataclass
class Board:
    """An sshd and the environment of its logins."""

    port: int
    folder: Path
    config: Path
    process: subprocess.Popen
    standin: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def host(self) -> Host:
        return Host.parse(self.address)

    @property
    def jobs(self) -> Path:
        """Scratch folders of jobs on the board."""
        return self.folder / "cache" / "hgkd-edge" / "jobs"

    def calls(self) -> list[str]:
        """Command lines of trtexec's stand-in, as JSON lists."""
        log = self.folder / "state" / "calls.jsonl"
        return log.read_text().splitlines() if log.exists() else []

    def builds(self) -> int:
        return sum("--onnx=" in call for call in self.calls())

    def leftovers(self) -> list[str]:
        """Scratch folders, job folders and processes that should be gone."""
        found = [path.name for path in self.jobs.glob("*")] if self.jobs.exists() else []
        found += [path.name for path in (self.folder / "tmp").glob("hgkd-edge-*")]
        return found + self.processes()

    def processes(self) -> list[str]:
        """Command lines and environments of the processes that run on this board."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            line = (command + environment).decode(errors="replace")
            if str(self.folder) in line and "STANDIN_STATE" in line and b"sshd" not in command:
                found.append(line)
        return found


def wait_until(check: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition in another process."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key pairs: `host`, `user` and an unauthorized `stranger`."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        missing = "openssh-server is not installed (sshd is needed for the SSH tests)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host", "user", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    return folder


@pytest.fixture
def start_board(keys: Path, tmp_path: Path) -> Iterator[Callable[..., Board]]:
    """Start boards: `start_board("orin", tools=("trtexec", ...), jetson=True, STANDIN_X="...")`."""
    running: list[Board] = []

    def start(
        name: str = "orin",
        *,
        tools: tuple[str, ...] = ("trtexec", "tegrastats", "nvpmodel"),
        jetson: bool = True,
        python: bool = True,
        login: str = "",
        logout: str = "",
        **environment: str,
    ) -> Board:
        folder = tmp_path / name
        for part in ("bin", "state", "cache", "tmp", "root"):
            (folder / part).mkdir(parents=True)
        for tool in tools:
            (folder / "bin" / tool).symlink_to(STANDINS / tool)
        write_python(folder / "bin", works=python)
        if jetson:
            make_jetson_root(folder / "root")
        variables = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "STANDIN_STATE": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "HGKD_EDGE_SYSROOT": str(folder / "root") if jetson else "/",
            **environment,
        }
        board = run_sshd(keys, folder, variables, login, logout)
        running.append(board)
        return board

    yield start
    for board in running:
        board.process.terminate()
        board.process.wait(5)


def write_python(folder: Path, *, works: bool = True) -> None:
    """A `python3` that is this interpreter, or that always fails."""
    script = folder / "python3"
    script.write_text(
        f'#!/bin/sh\nexec {sys.executable} "$@"\n' if works else "#!/bin/sh\nexit 127\n"
    )
    script.chmod(0o755)


def make_jetson_root(root: Path) -> None:
    """The files by which an Orin Nano 8GB, "super", on JetPack 6.2 is recognized."""
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
        "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    )
    (root / "etc/nvpmodel.conf").write_text(
        "# < POWER_MODEL ID=9 NAME=OLD >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    )
    tree = root / "sys/firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tree / "compatible").write_bytes(
        b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0"
    )


def run_sshd(keys: Path, folder: Path, variables: dict[str, str], login: str, logout: str) -> Board:
    """A sshd that lets only the `user` key in, and a client configuration that knows it.

    The command is run by sh under the board's own PATH: the start-up files of the user who runs the
    tests may change it. `login` and `logout` are shell lines, run before and after it like those of
    start-up files.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = folder / "sshd_config"
    server.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\n"
        f"AuthorizedKeysFile {keys}/user.pub\nPidFile none\nUsePAM no\nStrictModes no\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"ForceCommand exec /bin/bash {folder}/login.sh\n"
        "SetEnv " + " ".join(f'"{key}={value}"' for key, value in variables.items()) + "\n"
    )
    shell = folder / "login.sh"
    command = f'env PATH={variables["PATH"]} /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    shell.write_text(f"{login}\n{f'{command}; {logout}' if logout else f'exec {command}'}\n")
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(keys / 'host.pub').read_text()}")
    client = folder / "ssh_config"
    client.write_text(
        f"IdentityFile {keys}/user\nIdentitiesOnly yes\nUserKnownHostsFile {known}\n"
        "GlobalKnownHostsFile /dev/null\n"
    )
    assert SSHD is not None
    log = (folder / "sshd.log").open("wb")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(server)], stderr=log)
    wait_until(lambda: _listens(port) or process.poll() is not None)
    assert process.poll() is None, (folder / "sshd.log").read_text()
    return Board(port, folder, client, process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(board: Board, *models: Path, **changes: object) -> BenchResult:
    options = {"duration_s": 1.0, "rounds": 1, "ssh_config": board.config, "host": board.address}
    progress = changes.pop("progress", lambda _what, _part: None)
    return run_bench(
        BenchOptions(models=models, **{**options, **changes}),  # type: ignore[arg-type]
        progress=progress,  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the seconds of warm-up, idling and verification in tests about other things."""
    monkeypatch.setattr("hgkd_edge.bench.edge.by_trtexec.WARMUP_MS", 100)
    monkeypatch.setattr("hgkd_edge.bench.edge.link.IDLE_S", 0.1)
    monkeypatch.setattr(job, "MOST_VALUES", 0)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are verified, as they are by default."""
    monkeypatch.setattr(job, "MOST_VALUES", 1_000_000)
