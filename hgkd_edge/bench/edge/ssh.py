"""Reach a host with the system's OpenSSH client, with the user's own configuration and agent.

Passwords are never asked for (BatchMode), host keys are checked as the user's configuration says
(by default an unknown one is rejected), and the remote command is the constant `COMMAND`: no
user-supplied name is ever part of it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from hgkd_edge.errors import DeviceError

__all__ = ["BOOTSTRAP", "Host", "explain", "ssh_command"]

# Runs the script that comes on standard input as one line of base64; the conversation continues
# over the same stream. Only double quotes inside, so that every login shell (sh, bash, zsh, fish,
# csh) reads the single-quoted whole alike.
BOOTSTRAP = 'read -r script; script=$(echo "$script" | base64 -d); eval "$script"'
COMMAND = f"exec sh -c '{BOOTSTRAP}'"

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z|[0-9A-Fa-f:]+(%[A-Za-z0-9]+)?\Z")


@dataclass(frozen=True)
class Host:
    """A machine to reach: `name` may be an address or a Host of the user's ssh configuration."""

    name: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Host:
        """`jetson`, `user@jetson`, `user@jetson:2222`, `user@[fe80::1]:2222`.

        Raises:
            DeviceError: Anything else, in particular what ssh could take for an option.
        """
        user, at, rest = text.rpartition("@")
        bracketed = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,9}))?", rest)
        plain = re.fullmatch(r"([^:\[\]]+)(?::([0-9]{1,9}))?", rest)
        match = bracketed or plain
        if match is None or (at and not _USER.match(user)) or not _NAME.match(match[1]):
            raise DeviceError(
                f"--host '{text}' is not user@machine[:port]",
                hint="such as nvidia@192.168.55.1 or nvidia@orin:2222",
            )
        port = int(match[2]) if match[2] else None
        if port is not None and not 0 < port < 65536:
            raise DeviceError(f"--host '{text}': there is no port {port}", hint="1 to 65535")
        return cls(name=match[1], user=user or None, port=port)

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return (
            (f"{self.user}@" if self.user else "") + name + (f":{self.port}" if self.port else "")
        )


def ssh_command(host: Host, config: Path | None = None) -> list[str]:
    """The client's arguments, as a list: no local shell is involved either.

    Raises:
        DeviceError: This machine has no ssh.
    """
    client = shutil.which("ssh")
    if client is None:
        raise DeviceError("there is no 'ssh' on this machine", hint="install openssh-client")
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "6",
        # These are not needed, and a hostile host must not be offered them.
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        # The user's own command for this host (tmux, ...) cannot run together with ours.
        "RemoteCommand": "none",
    }
    return [
        client,
        "-T",
        *(["-F", str(config)] if config else []),
        *(part for key, value in options.items() for part in ("-o", f"{key}={value}")),
        *(["-l", host.user] if host.user else []),
        *(["-p", str(host.port)] if host.port else []),
        "--",
        host.name,
        COMMAND,
    ]


def explain(host: Host, code: int, stderr: str) -> DeviceError:
    """The error for a connection that ended before the device sent its facts."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reported = lines[-1][:300] if lines else f"ssh ended with code {code}"
    target = f"ssh{f' -p {host.port}' if host.port else ''} {Host(host.name, host.user)}"
    low = stderr.lower()
    if code == 127:
        return DeviceError(
            f"{host} lacks a tool: {reported}",
            hint="install coreutils, util-linux, tar and gzip there",
        )
    if "remote host identification has changed" in low:
        return DeviceError(
            f"the host key of {host} has changed: it may be another machine",
            hint=f"if it was reinstalled: ssh-keygen -R '{host.name}', then {target}",
        )
    if "host key verification failed" in low or "host key is known" in low:
        return DeviceError(
            f"{host} is not a known host: its key was never confirmed",
            hint=f"connect once by hand and compare the fingerprint: {target}",
        )
    if "permission denied" in low or "too many authentication failures" in low:
        return DeviceError(
            f"{host} refused the login: {reported}",
            hint=f"passwords are not used; set up a key: ssh-copy-id "
            f"{f'-p {host.port} ' if host.port else ''}{Host(host.name, host.user)}",
        )
    if "could not resolve" in low:
        return DeviceError(
            f"no machine called '{host.name}' is known: {reported}", hint="check --host"
        )
    if "refused" in low:
        return DeviceError(
            f"{host} answers, but nothing listens on that port: {reported}",
            hint="start sshd there: sudo systemctl start ssh",
        )
    if "timed out" in low or "no route" in low or "unreachable" in low:
        return DeviceError(
            f"{host} cannot be reached: {reported}", hint="check that it is on, and in this network"
        )
    return DeviceError(
        f"cannot work on {host}: {reported}", hint=f"check that this works: {target}"
    )
