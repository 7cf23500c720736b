"""Addresses, routes and resolver on macOS: exact command lines, run by a given runner.

Not yet run on a Mac. Written from the manual pages of ifconfig(8), route(8) and scutil(8). All functions that make
commands are pure; `MacNetwork` runs them, writes the journal before each change, and `UNDO` takes the changes back.

The default route stays. Two routes, each of half the address space, are more specific and win. They end with the
device, also after a crash. The journal holds the host route to the exit, the routes that refuse IPv6, and the
resolver's entry. There is no kill switch on macOS yet.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final, NamedTuple

from cryprq_proxy.errors import ConfigError, CryprqError

type Address = IPv4Address | IPv6Address

SERVICE: Final = "State:/Network/Service/cryprq-proxy/DNS"
"""Key of our entry in the dynamic store, which a reboot clears."""
HALVES: Final = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
_FAMILY: Final = {4: "-inet", 6: "-inet6"}
_INTERFACE: Final = re.compile(r"[a-z]{1,10}[0-9]{1,4}")
_SECONDS: Final = 10.0


class Command(NamedTuple):
    """A program's argument list and its input."""

    argv: tuple[str, ...]
    stdin: str = ""


type Runner = Callable[[Command], str]
"""Runs a command and returns its output; raises CryprqError if it fails."""


class MacHop(NamedTuple):
    """The next hop of packets; `gateway` is empty without one."""

    interface: str
    gateway: str


def run(command: Command) -> str:
    """The real runner. Raises CryprqError with the first line of the program's error output."""
    name = command.argv[0]
    try:
        done = subprocess.run(
            command.argv, input=command.stdin, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CryprqError(f"{name} cannot be run: {error}") from error
    if done.returncode:
        complaint = (
            done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        ).splitlines()[0]
        raise CryprqError(f"{name} failed: {complaint}")
    return done.stdout


def address_commands(device: str, mtu: int, addresses: Sequence[Address]) -> list[Command]:
    """Set the MTU and the addresses of a utun device and bring it up; a point-to-point link's far end is itself."""
    commands = [Command(("ifconfig", device, "mtu", str(mtu)))]
    for address in addresses:
        four = address.version == 4
        rest = ("inet", f"{address}/32", str(address)) if four else ("inet6", f"{address}/128")
        commands.append(Command(("ifconfig", device, *rest, "alias")))
    return [*commands, Command(("ifconfig", device, "up"))]


def device_route(verb: str, prefix: str, device: str) -> Command:
    """Add or delete the route of a prefix into a device."""
    return Command(("route", "-q", "-n", verb, _family(prefix), "-net", prefix, "-interface", device))


def reject_route(verb: str, prefix: str) -> Command:
    """Add or delete a route that refuses a prefix at once."""
    loopback = "127.0.0.1" if ip_network(prefix).version == 4 else "::1"
    return Command(("route", "-q", "-n", verb, _family(prefix), "-net", prefix, loopback, "-reject"))


def exit_route(verb: str, exit_address: Address, hop: MacHop) -> Command:
    """Add or delete the host route that keeps the link itself out of the tunnel."""
    towards = (hop.gateway,) if hop.gateway else ("-interface", hop.interface)
    family = _FAMILY[exit_address.version]
    return Command(("route", "-q", "-n", verb, family, "-host", str(exit_address), *towards))


def hop_query(address: Address) -> Command:
    """Ask for the present route to an address."""
    return Command(("route", "-n", "get", _FAMILY[address.version], str(address)))


def parse_hop(output: str) -> MacHop:
    """Read the answer to `hop_query`: lines of `name: value`. Raises ConfigError if there is no route."""
    values: dict[str, str] = {}
    for line in output.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            values.setdefault(name.strip(), value.strip())
    interface, gateway = values.get("interface", ""), values.get("gateway", "")
    if _INTERFACE.fullmatch(interface) is None:
        raise ConfigError("there is no route to the exit: connect this machine to a network first")
    try:
        ip_address(gateway)
    except ValueError:
        # None, or a link-layer address.
        gateway = ""
    return MacHop(interface, gateway)


def resolver_command(servers: Sequence[Address]) -> Command:
    """Make these the resolvers of all names: a supplemental entry whose match is the empty domain."""
    addresses = " ".join(str(server) for server in servers)
    lines = (
        "d.init",
        f"d.add ServerAddresses * {addresses}",
        'd.add SupplementalMatchDomains * ""',
        f"set {SERVICE}",
        "quit",
    )
    return Command(("scutil",), "\n".join(lines) + "\n")


def resolver_removal() -> Command:
    return Command(("scutil",), f"remove {SERVICE}\nquit\n")


FLUSH: Final = (Command(("dscacheutil", "-flushcache")), Command(("killall", "-HUP", "mDNSResponder")))
"""The two caches of names."""


class MacNetwork:
    """The machine's set-up for one tunnel. Every method but `address` records what it changes before it does."""

    def __init__(
        self, device: str, record: Callable[[Mapping[str, object]], None], runner: Runner = run
    ) -> None:
        self._device = device
        self._record = record
        self._run = runner

    def address(self, mtu: int, addresses: Sequence[Address]) -> None:
        """Bring the device up. Nothing is recorded, since all of it ends with the device."""
        for command in address_commands(self._device, mtu, addresses):
            self._run(command)

    def keep_exit(self, exit_address: Address) -> MacHop:
        """Pin the link to its present route. Call it before `route`. Raises ConfigError without a network."""
        hop = parse_hop(self._run(hop_query(exit_address)))
        entry = {"kind": "macos-exit", "address": str(exit_address), **hop._asdict()}
        self._record(entry)
        self._run(exit_route("add", exit_address, hop))
        return hop

    def route(self, ipv6: bool) -> None:
        """Send all traffic into the device; refuse IPv6 if the exit has none."""
        for prefix in HALVES[4]:
            self._run(device_route("add", prefix, self._device))
        for prefix in HALVES[6]:
            if ipv6:
                self._run(device_route("add", prefix, self._device))
            else:
                self._record({"kind": "macos-reject", "prefix": prefix})
                self._run(reject_route("add", prefix))

    def resolve(self, servers: Sequence[Address]) -> None:
        """Send all questions for names to these servers."""
        self._record({"kind": "macos-resolver"})
        self._run(resolver_command(servers))
        for command in FLUSH:
            self._run(command)


def undo_command(entry: Mapping[str, Any]) -> Command:
    """The command that undoes a journal entry. Raises ConfigError for an entry that this module would not write: a
    journal holds values, never commands."""
    try:
        match entry:
            case {
                "kind": "macos-exit",
                "address": str(address),
                "interface": str(interface),
                "gateway": str(gateway),
            }:
                if _INTERFACE.fullmatch(interface) is None:
                    raise ValueError(interface)
                hop = MacHop(interface, str(ip_address(gateway)) if gateway else "")
                return exit_route("delete", ip_address(address), hop)
            case {"kind": "macos-reject", "prefix": str(prefix)} if prefix in HALVES[6]:
                return reject_route("delete", prefix)
            case {"kind": "macos-resolver"}:
                return resolver_removal()
    except ValueError as error:
        raise ConfigError(f"the journal's entry {entry!r} is damaged: {error}") from error
    raise ConfigError(f"the journal's entry {entry!r} is none of macOS's")


def undo(entry: Mapping[str, Any], runner: Runner = run) -> None:
    """Undo one change; a change that is already undone is no error."""
    command = undo_command(entry)
    try:
        runner(command)
    except CryprqError as error:
        if "not in table" not in str(error) and "No such key" not in str(error):
            raise


UNDO: Final = dict.fromkeys(("macos-exit", "macos-reject", "macos-resolver"), undo)


def _family(prefix: str) -> str:
    return _FAMILY[ip_network(prefix).version]
