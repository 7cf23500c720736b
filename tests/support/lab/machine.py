"""A machine of its own inside a host of the lab, on which the program is installed and nothing else was done.

A host has a layer over /etc; here /var/lib, /run, /opt and what lies in /root are the host's own as well. The program
is /opt/cryprq-proxy/bin/cryprq-proxy and runs this working tree. No service manager runs: `start` stands in for it and
does with an installed unit what systemd would do, that is ExecStart= as User= with Environment= and nothing of the
caller's. It does not confine the service; what the units say about that is in tests/configs/test_units.py.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

from tests.support.lab.links import Links, Role
from tests.support.lab.net import LONG, Namespace
from tests.support.logged import ROOT

UNITS: Final = "/etc/systemd/system"
PROGRAM: Final = "/opt/cryprq-proxy/bin/cryprq-proxy"
_PATH: Final = "/opt/cryprq-proxy/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _as(user: str) -> list[str]:
    """Execs, so that signals reach the program."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]


class Machine:
    """`links` ends what runs here, and looks at what it has said."""

    def __init__(self, links: Links, host: Namespace) -> None:
        self._links = links
        self.host = host
        self.environment = {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        self._runtime: dict[str, str] = {}
        self._set_up()

    def _set_up(self) -> None:
        """The interpreter may be in /root, which users of the machine may not enter."""
        needed = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), ROOT.resolve()}
        closed = sorted(str(part) for part in needed if part.is_relative_to("/root"))
        script = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        script += "from cryprq_proxy.__main__ import main\nmain()\n"
        lines = [
            "set -e",
            *(f"mount -t tmpfs -o mode=755 lab {place}" for place in ("/opt", "/var/lib", "/run")),
        ]
        for number, part in enumerate(closed):
            lines += [f"mkdir /opt/{number}", f"mount --bind {shlex.quote(part)} /opt/{number}"]
        if closed:
            lines.append("mount -t tmpfs -o mode=755 lab /root")
        for number, part in enumerate(closed):
            lines += [f"mkdir -p {shlex.quote(part)}", f"mount --bind /opt/{number} {shlex.quote(part)}"]
        lines += [f"mkdir -p {Path(PROGRAM).parent}", f"cat >{PROGRAM}", f"chmod 755 {PROGRAM}"]
        self.host.run(["sh", "-c", "\n".join(lines)], stdin=script)

    def person(self, name: str) -> dict[str, str]:
        """Make a user; what stands in the environment of sudo when that user calls it."""
        home = f"/opt/{name}"
        self.host.run(["useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", name])
        uid = self.host.run(["id", "-u", name]).strip()
        self._runtime[name] = f"/run/user/{uid}"
        self.host.run(["mkdir", "-p", "/run/user"])
        self.host.run(["install", "-d", "-o", name, "-m", "700", self._runtime[name]])
        return {"SUDO_USER": name}

    def command(self, *arguments: str, **variables: str) -> str:
        """A command of root that ends; its standard output."""
        return self.host.run(["cryprq-proxy", *arguments], env=self.environment | variables, limit=LONG * 2)

    def sentence(self, *arguments: str, **variables: str) -> str:
        """What a command of root says that is refused."""
        done = self.host.attempt(["cryprq-proxy", *arguments], env=self.environment | variables)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        return done.stderr

    def as_user(self, name: str, *arguments: str) -> list[str]:
        return [*_as(name), "env", *self._of(name), PROGRAM, *arguments]

    def _of(self, name: str) -> list[str]:
        """The variables of a person's session."""
        return [f"HOME=/opt/{name}", f"XDG_RUNTIME_DIR={self._runtime[name]}"]

    def by_hand(self, label: str, command: list[str]) -> Role:
        """A command that goes on; returns when it is ready."""
        role = Role(label, self.host, command, self.environment)
        self._links.roles.append(role)
        role.says("ready: ")
        return role

    def start(self, unit: str, person: str = "") -> Role:
        """In place of systemd, or that of `person`: what is installed as `unit`, until the lab ends. Returns when it is
        ready."""
        text = self.read(f"{f'/opt/{person}/.config/systemd/user' if person else UNITS}/{unit}.service")
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#[")
        user = person or found.get("User", "root")
        variables = self._of(person) if person else shlex.split(found.get("Environment", ""))
        clean = ["env", "-i", f"PATH={_PATH}", "PYTHONUNBUFFERED=1", *variables]
        return self.by_hand(unit, [*_as(user), *clean, *shlex.split(found["ExecStart"])])

    def read(self, path: str) -> str:
        return self.host.run(["cat", path])

    def listing(self, directory: str) -> str:
        """Names, owners and modes in a directory."""
        return self.host.run(["find", directory, "-mindepth", "1", "-printf", "%P %u %m\\n"])

    def page(self, url: str, *proxy: str) -> str:
        return self.host.run(["curl", "-sS", "--max-time", f"{LONG:g}", *proxy, url])
