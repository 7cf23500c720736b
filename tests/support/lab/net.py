"""Hosts made of network namespaces, for tests that change routes, rules, filters and resolvers.

A `Namespace` is a host: it has a network namespace with a name (`cq`, the pid of this process, something random, a
label) and a mount namespace, both kept alive by one process that does nothing. In the mount namespace /etc is the
host's own: its resolv.conf can be written, renamed over and removed like any file, and the machine's stays as it is.
With `resolver="bound"` it is instead a bind mount, as container engines and `ip netns exec` make it: it can be
written, but a rename over it fails with EBUSY.

A `Lab` makes hosts and the cables between them, and removes all of it: at the end of its `with`, or when the
interpreter ends. Every process inside one of its namespaces is one that the lab or its children started, so removal
kills them all, by pid. What a killed test run left behind is swept away by the next one.

Sockets belong to the namespace in which they are made, and a namespace is a property of a thread: so most helpers
make their sockets inside `Namespace.entered()` and then work on them from here.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import IO, Literal, Self

from tests.support.lab.snapshot import snapshot

NETNS = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")
PREFIX = "cq"
STALE = re.compile(rf"{PREFIX}(\d+)-[0-9a-f]{{6}}-")
LIMIT = 20.0
"""Seconds that a short command may take."""
LONG = 15.0
"""Seconds in which what should arrive has arrived, however busy the machine is."""
SILENCE = 1.0
"""Seconds without an answer after which none is expected to come."""
RESOLVER = "# of the lab\nnameserver 192.168.77.1\n"
NAME_SERVICES = "passwd: files\ngroup: files\nhosts: files dns\n"
"""The machine may look names up by other means, which a host of the lab does not have."""

Resolver = Literal["own", "bound"]

# `ip netns exec` has given the shell a mount namespace whose changes stay inside. "own" puts a layer over /etc; where
# the kernel has no overlayfs, a copy.
_KEEPER = """set -e
if [ "$1" = own ]; then
    mount -t tmpfs cqlab "$2"
    mkdir "$2/upper" "$2/work"
    mount -t overlay -o "lowerdir=/etc,upperdir=$2/upper,workdir=$2/work" cqlab /etc 2>/dev/null || {
        cp -a /etc "$2/etc"
        mount --bind "$2/etc" /etc
    }
    rm -f /etc/resolv.conf
    printf '%s' "$3" >/etc/resolv.conf
    printf '%s' "$4" >/etc/nsswitch.conf
    chmod 644 /etc/resolv.conf
fi
echo ready
exec cat >/dev/null
"""


class LabError(Exception):
    """A command of the lab failed, or something did not happen in time."""


def missing() -> str | None:
    """Why no lab can be made here, or None."""
    if sys.platform != "linux":
        return "network namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "not root: network namespaces cannot be made"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"{program} is not installed; on Debian: apt-get install {package}"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"namespaces are not allowed here: {done.stderr.strip()}"
    return None


def until(condition: Callable[[], bool], what: str, seconds: float = LIMIT) -> None:
    """Returns as soon as `condition` holds, for what tells nobody when it happens."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


def _checked(command: Sequence[str], text: str | None = None, limit: float = LIMIT) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise LabError(f"{shlex.join(command)} gave {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Namespace:
    """One host. Made by `Lab.namespace`."""

    def __init__(self, name: str, label: str, directory: Path, resolver: Resolver) -> None:
        self.name = name
        self.label = label
        self.directory = directory
        """A directory of the machine for this host's files; removed with it."""
        self._programs: list[subprocess.Popen[str]] = []
        _checked(["ip", "netns", "add", name])
        if resolver == "bound":
            bound = ETC_NETNS / name
            bound.mkdir(parents=True)
            (bound / "resolv.conf").write_text(RESOLVER)
            (bound / "nsswitch.conf").write_text(NAME_SERVICES)
        layer = directory / "etc"
        layer.mkdir()
        # Ends at the end of its input, and so with this process, however that ends.
        self._keeper = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                name,
                "sh",
                "-c",
                _KEEPER,
                "sh",
                resolver,
                str(layer),
                RESOLVER,
                NAME_SERVICES,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "ready\n":
            raise LabError(f"the mount namespace of {name} could not be set up")
        for family, key, value in (
            # Addresses are of use at once, and no solicitations stand in the captures.
            ("ipv6", "accept_dad", "0"),
            ("ipv6", "dad_transmits", "0"),
            ("ipv6", "accept_ra", "0"),
            ("ipv6", "router_solicitations", "0"),
        ):
            for which in ("all", "default"):
                self.sysctl(f"net.{family}.conf.{which}.{key}", value)
        self.ip("link set lo up")

    # Commands

    def _inside(self, command: Sequence[str], cwd: Path | None) -> list[str]:
        """nsenter execs in place, so that a pid is the program's own."""
        where = [f"--net={NETNS / self.name}", f"--mount=/proc/{self._keeper.pid}/ns/mnt"]
        return ["nsenter", *where, f"--wd={cwd or self.directory}", "--", *command]

    def attempt(
        self,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        limit: float = LIMIT,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, whatever that is. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            self._inside(command, cwd),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            env=env,
            check=False,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        limit: float = LIMIT,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Runs a command to its end and gives its standard output. Raises LabError if it fails."""
        done = self.attempt(command, stdin=stdin, limit=limit, env=env, cwd=cwd)
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise LabError(f"{self.label}: {shlex.join(command)} gave {done.returncode}: {said}")
        return done.stdout

    def ip(self, arguments: str) -> str:
        """`ip` inside, its arguments as one would type them. Raises LabError."""
        return _checked(["ip", "-n", self.name, *shlex.split(arguments)])

    def nft(self, ruleset: str) -> None:
        """`nft -f -` inside. Raises LabError."""
        self.run(["nft", "-f", "-"], stdin=ruleset)

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.DEVNULL,
        stderr: int | IO[str] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a program inside; its pid is the program's own. Killed with the host if it still runs then."""
        program = subprocess.Popen(
            self._inside(command, cwd),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            text=True,
            errors="replace",
        )
        self._programs.append(program)
        return program

    # Python inside

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread's network is the host's: make sockets and read /proc/sys/net here; never await."""
        with open("/proc/thread-self/ns/net") as outside, open(NETNS / self.name) as inside:
            os.setns(inside.fileno(), os.CLONE_NEWNET)
            try:
                yield
            finally:
                os.setns(outside.fileno(), os.CLONE_NEWNET)

    def call[Result](self, function: Callable[[], Result], limit: float = LIMIT) -> Result:
        """Runs `function` in a forked child that is wholly inside, mounts too, and gives its result.

        Both result and exception must be picklable. Raises what it raised, and LabError if it did not come back.
        """
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # The child makes no thread and takes no lock that another thread here may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            self._child(function, writing, limit)
        os.close(writing)
        with open(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        if not answer:
            raise LabError(f"{self.label}: the call did not come back within {limit:g} s")
        good, value = pickle.loads(answer)
        if not good:
            raise value
        result: Result = value
        return result

    def _child(self, function: Callable[[], object], writing: int, limit: float) -> None:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, limit)
            with open(f"/proc/{self._keeper.pid}/ns/mnt") as mounts, open(NETNS / self.name) as net:
                os.setns(net.fileno(), os.CLONE_NEWNET)
                os.setns(mounts.fileno(), os.CLONE_NEWNS)
            try:
                answer: tuple[bool, object] = (True, function())
            except Exception as error:
                answer = (False, error)
            with open(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            code = 0
        finally:
            os._exit(code)

    def sysctl(self, key: str, value: str | None = None) -> str:
        """Reads a `net.` sysctl, or writes it; interface names with dots are written with slashes, as in sysctl(8)."""
        separator = "/" if "/" in key else "."
        with self.entered():
            path = Path("/proc/sys", *key.split(separator))
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()

    # Files

    def path(self, path: str) -> Path:
        """Where this process finds a file of the host: through /proc/PID/root."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    @property
    def resolv_conf(self) -> Path:
        return self.path("/etc/resolv.conf")

    def snapshot(self) -> str:
        """What the program may change, as text for comparison: see `snapshot`."""
        with self.entered():
            return snapshot(self.run)

    # End

    def pids(self) -> list[int]:
        """Of all processes inside, but the one that keeps it."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        return [pid for pid in map(int, listed.stdout.split()) if pid not in (self._keeper.pid, os.getpid())]

    def close(self) -> None:
        """Kills what runs inside and removes the namespace. May be called again."""
        for program in self._programs:
            if program.poll() is None:
                program.kill()
            program.wait()
            for pipe in (program.stdin, program.stdout, program.stderr):
                # A reader in another thread ends by itself; only what nobody took is closed here.
                if pipe is not None and not pipe.closed:
                    with contextlib.suppress(OSError, ValueError):
                        pipe.close()
        self._programs.clear()
        _kill_all(self.pids)
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait()
        _remove(self.name)


def _kill_all(pids: Callable[[], list[int]]) -> None:
    """A process that is being killed may have started another: until none is left."""
    deadline = time.monotonic() + LIMIT
    while (left := pids()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _remove(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    shutil.rmtree(ETC_NETNS / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        ETC_NETNS.rmdir()  # only if it is empty, so that the machine is as before


def sweep() -> None:
    """Removes what labs of processes that are gone have left, with the processes inside."""
    for path in [*NETNS.glob(f"{PREFIX}*"), *ETC_NETNS.glob(f"{PREFIX}*")]:
        match = STALE.match(path.name)
        if match is None or Path("/proc", match[1]).exists():
            continue
        name = path.name

        def pids(name: str = name) -> list[int]:
            done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            return list(map(int, done.stdout.split()))

        _kill_all(pids)
        _remove(name)


def _local_routes(host: Namespace, device: str) -> str:
    """Those to the device's IPv6 addresses."""
    return host.ip(f"-6 route show table local dev {device}")


class Lab:
    """Makes hosts and cables. A context manager; `close` may be called again."""

    def __init__(self) -> None:
        reason = missing()
        if reason is not None:
            raise LabError(reason)
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix="cryprq-lab-"))
        self.hosts: list[Namespace] = []
        self._closers: list[Callable[[], None]] = []
        atexit.register(self.close)

    def namespace(self, label: str, resolver: Resolver = "own") -> Namespace:
        """A new host with nothing but `lo`. Raises LabError."""
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(3)}-{label}"
        directory = self.directory / name
        directory.mkdir()
        try:
            host = Namespace(name, label, directory, resolver)
        except BaseException:
            _remove(name)
            raise
        self.hosts.append(host)
        return host

    def veth(self, one: Namespace, device: str, other: Namespace, far: str, mtu: int = 1500) -> None:
        """A cable between two hosts, up at both ends. It never exists outside of them."""
        one.ip(f"link add name {device} mtu {mtu} type veth peer name {far} mtu {mtu} netns {other.name}")
        self.link_up((one, device), (other, far))

    def link_up(self, *ends: tuple[Namespace, str]) -> None:
        """Sets both ends of a cable up, and returns when they are."""
        for host, device in ends:
            host.ip(f"link set {device} up")
        # The kernel tells each end of the other at a time of its own, and later gives it its link-local address.
        until(lambda: all("local fe80" in _local_routes(host, end) for host, end in ends), "a cable")

    def address(self, host: Namespace, device: str, *addresses: str) -> None:
        """Addresses with their prefix lengths, of both families, for a device that is up. They are in use then."""
        for address in addresses:
            host.ip(f"addr add {address} dev {device}" + (" nodad" if ":" in address else ""))
        six = [f"local {ip_interface(address).ip} " for address in addresses if ":" in address]
        # The kernel makes the route of an IPv6 address on a thread of its own.
        until(lambda: all(route in _local_routes(host, device) for route in six), "IPv6 addresses")

    def forward(self, host: Namespace) -> None:
        """Makes it a router for both families."""
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            host.sysctl(key, "1")

    def on_close(self, closer: Callable[[], None]) -> None:
        """`closer` is called before the hosts are removed, the last one first."""
        self._closers.append(closer)

    def close(self) -> None:
        atexit.unregister(self.close)
        with contextlib.ExitStack() as stack:
            # Runs all of it, also after one of them raises.
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for host in self.hosts:
                stack.callback(host.close)
            for closer in self._closers:
                stack.callback(closer)
            self.hosts, self._closers = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
