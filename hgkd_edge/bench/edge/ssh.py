"""Reach a host with the system's OpenSSH client, with the user's own configuration and agent.

Passwords are never asked for (BatchMode), host keys are checked as the user's configuration says
(by default an unknown one is rejected), and the remote command is the constant `COMMAND`: no
user-supplied name is ever part of it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass

from hgkd_edge.errors import DeviceError

__all__ = ["BOOTSTRAP", "REASONS", "Host", "explain", "ssh_command"]

# Runs the script that comes on standard input as one line of base64; the conversation continues
# over the same stream. Only double quotes inside, so that every login shell (sh, bash, zsh, fish,
# csh) reads the single-quoted whole alike.
BOOTSTRAP = 'read -r script; script=$(echo "$script" | base64 -d); eval "$script"'
COMMAND = f"exec sh -c '{BOOTSTRAP}'"

_OPTIONS = {
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
_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)@)?"
    r"(?:(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)|\[(?P<address>[0-9A-Fa-f:]+(?:%[A-Za-z0-9]+)?)\])"
    r"(?::(?P<port>[0-9]{1,9}))?"
)
# What ssh says -> what is wrong, and the hint.
REASONS = (
    (
        "remote host identification has changed",
        "the host key of {host} has changed: it may be another machine",
        "if it was reinstalled: ssh-keygen -R '{name}', then ssh {target}",
    ),
    (
        "host key verification failed|host key is known",
        "{host} is not a known host: its key was never confirmed",
        "connect once by hand and compare the fingerprint: ssh {target}",
    ),
    (
        "permission denied|too many authentication failures",
        "{host} refused the login: {reported}",
        "passwords are not used; set up a key: ssh-copy-id {target}",
    ),
    ("could not resolve", "no machine called '{name}' is known: {reported}", "check --host"),
    (
        "refused",
        "{host} answers, but nothing listens on that port: {reported}",
        "start sshd there: sudo systemctl start ssh",
    ),
    (
        "timed out|no route|unreachable",
        "{host} cannot be reached: {reported}",
        "check that it is on, and in this network",
    ),
    ("", "cannot work on {host}: {reported}", "check that this works: ssh {target}"),
)


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
        match = _HOST.fullmatch(text)
        if match is None:
            raise DeviceError(
                f"--host '{text}' is not user@machine[:port]",
                hint="such as nvidia@192.168.55.1 or nvidia@orin:2222",
            )
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 0 < port < 65536:
            raise DeviceError(f"--host '{text}': there is no port {port}", hint="1 to 65535")
        return cls(match["name"] or match["address"], match["user"], port)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return user + name + (f":{self.port}" if self.port else "")


def ssh_command(host: Host, config: str | os.PathLike[str] | None = None) -> list[str]:
    """The client's arguments, as a list: no local shell is involved either.

    Raises:
        DeviceError: This machine has no ssh.
    """
    client = shutil.which("ssh")
    if client is None:
        raise DeviceError("there is no 'ssh' on this machine", hint="install openssh-client")
    return [
        client,
        "-T",
        *(["-F", str(config)] if config else []),
        *(part for key, value in _OPTIONS.items() for part in ("-o", f"{key}={value}")),
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
    if code == 127:
        return DeviceError(
            f"{host} lacks a tool: {reported}",
            hint="install coreutils, util-linux, tar and gzip there",
        )
    target = f"{f'-p {host.port} ' if host.port else ''}{Host(host.name, host.user)}"
    texts = {"host": host, "name": host.name, "reported": reported, "target": target}
    reason, hint = next(rest for words, *rest in REASONS if re.search(words, stderr, re.IGNORECASE))
    return DeviceError(reason.format(**texts), hint=hint.format(**texts))
