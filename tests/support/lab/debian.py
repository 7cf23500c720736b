"""Fresh Debian systems, each below a directory of its own, to install the package in."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.support.lab.net import RESOLVER, Namespace
from tests.support.logged import ROOT

ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONUNBUFFERED": "1",
}
PATIENCE: Final = 300.0
"""Seconds for what fetches from a mirror or packs."""
_OF_APT: Final = re.compile(
    r"/(var/(lib/(apt|dpkg)|cache|log)|tmp|run|proc|sys|dev)(/|$)|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"
)
"""What each installation changes, of whichever package."""


class NoDebianError(Exception):
    """None can be made here; the text says why."""


def built_package(into: Path) -> Path:
    """The package of this tree. Raises NoDebianError."""
    for program, package in (
        ("debootstrap", "debootstrap"),
        ("dpkg-shlibdeps", "dpkg-dev"),
        ("strip", "binutils"),
        ("patchelf", "patchelf"),
    ):
        if shutil.which(program) is None:
            raise NoDebianError(f"{program} is not installed; on Debian: apt-get install {package}")
    command = [sys.executable, "-m", "tools.deb", "--into", str(into)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def mirror() -> str:
    """Where this machine gets its packages of Debian from. Raises NoDebianError."""
    try:
        command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = ""
    for line in listed.splitlines():
        origin, _, site = line.partition(" ")
        if origin == "Debian":
            return site
    raise NoDebianError("apt of this machine has no mirror of Debian")


class Debian:
    """One system with the essential packages alone."""

    def __init__(self, suite: str, directory: Path) -> None:
        """Takes half a minute. Raises NoDebianError, for instance where the mirror cannot be reached."""
        self.root = directory
        command = ["debootstrap", "--variant=minbase", suite, str(directory), mirror()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise NoDebianError(
                f"debootstrap made no {suite}: {done.stderr.strip() or done.stdout[-300:].strip()}"
            )

    def prepare(self, package: Path) -> None:
        """Install what a package depends on and recommends, and put it into /tmp."""
        shutil.copy(package, self.root / "tmp")
        fields = [
            subprocess.run(
                ["dpkg-deb", "--field", package, name], capture_output=True, text=True, check=True
            ).stdout
            for name in ("Depends", "Recommends")
        ]
        self.apt("update")
        self.apt("satisfy", *(field.strip() for field in fields))

    def apt(self, *arguments: str) -> str:
        """apt-get, with the network of the machine."""
        shutil.copyfile("/etc/resolv.conf", self.root / "etc/resolv.conf")
        mounted = f'mount --make-rprivate / && mount -t proc proc "{self.root}/proc" && exec "$@"'
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                mounted,
                "sh",
                *self.command("apt-get", "-qq", "-y", *arguments),
            ],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def enter(self, host: Namespace) -> None:
        """Make this the system of a host of the lab: `command` runs there from now on."""
        (self.root / "etc/resolv.conf").write_text(RESOLVER)
        host.run(["mount", "-t", "proc", "proc", f"{self.root}/proc"])
        for tree in ("/dev", "/sys"):
            host.run(["mount", "--rbind", tree, f"{self.root}{tree}"])

    def command(self, *words: str) -> list[str]:
        return ["chroot", str(self.root), *words]

    def managed(self, *words: str) -> list[str]:
        """As `command`, where the first process of the system is in the same network: as beside a service manager."""
        own = ["unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={self.root}/proc"]
        return [*own, *self.command(*words)]

    def files(self) -> dict[str, str]:
        """All that is there, with the hash of each file's content, without what apt and dpkg keep for themselves."""
        return dict(self._files())

    def _files(self) -> Iterable[tuple[str, str]]:
        for path in self.root.rglob("*"):
            name = "/" + str(path.relative_to(self.root))
            if _OF_APT.match(name) or name in ("/etc/resolv.conf", "/etc/ld.so.cache"):
                continue
            plain = path.is_file() and not path.is_symlink()
            yield name, hashlib.sha256(path.read_bytes()).hexdigest() if plain else ""
