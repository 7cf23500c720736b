"""A start on macOS that changes nothing: its own classes, with programs that only seem to change something.

What asks is run in truth; what changes is written down, and answered as if it had worked. What a start asks afterwards
is answered with what it has seemed to change, so that it goes on. So the list is that of the commands of a start,
whatever those become (tun/dry_run.py).

Without root pfctl tells nothing; then pf is taken to be as macOS delivers it.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..firewall.filter_settings import FilterSettings
from ..journal import Entry
from ..routing.lan import Lan
from ..routing.tunnel_addresses import TunnelAddresses
from ..settings import RESOLVER4, RESOLVER6, ExitNetworkSettings, TunnelSettings
from ..system import Change, System
from . import networks
from .asked import FIRST
from .device import OpenControl
from .networks import NETSTAT
from .programs import PATHS, Command, ProgramAnswer, Run

TOKEN: Final = "1"
"""In place of pf's."""
_WITH_DEVICE: Final = "ends with the program, however that ends"
_NOTHING: Final = "nothing to undo"
_DELIVERED: Final[Mapping[tuple[str, ...], str]] = {
    ("-s", "info"): "Status: Disabled",
    ("-v", "-s", "Interfaces"): "lo0",
    ("-s", "References"): "No pf starter references held",
    ("-s", "rules"): 'scrub-anchor "com.apple/*" all fragment reassemble\nanchor "com.apple/*" all',
    ("-s", "nat"): 'nat-anchor "com.apple/*" all\nrdr-anchor "com.apple/*" all',
}
"""What pfctl tells of pf as macOS delivers it."""

type MakeSystem = Callable[[Run, OpenControl], System]


class Rehearsal:
    """Programs of macOS, of which those that change anything only seem to be run. It is a Run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.made: list[Command] = []
        """What would have changed something, in order."""
        self.device = ""
        self._flags = "POINTOPOINT,RUNNING,MULTICAST"
        self._mtu = 1500
        self._addresses: list[str] = []
        self._routes: dict[tuple[str, str], str] = {}
        self._anchors: dict[str, str] = {}
        self._keys: dict[str, list[str]] = {}
        self.settings: dict[str, tuple[str, str]] = {}
        """Name of a kernel setting -> its value before, and now."""

    def control(self, name: str) -> tuple[int, str]:
        """In place of `open_control`: the next free device, which is not made."""
        state = networks.look(self._run)
        taken = {interface.name for interface in state.interfaces}
        self.device = next(
            found for number in range(len(taken) + 1) if (found := f"utun{number}") not in taken
        )
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), self.device

    def __call__(self, command: Command) -> ProgramAnswer:
        if command.changes:
            self.made.append(command)
            return ProgramAnswer(self._seem(command) or "")
        return self._asked(command)

    def _seem(self, command: Command) -> str | None:
        match command.argv:
            case ("ifconfig", _, *words):
                self._seem_configured(words)
            case ("route", "-n", "delete", family, _, to, *_):
                self._routes.pop((family, to), None)
            case ("route", "-n", _, family, _, to, *towards):
                self._routes[family, to] = self._line(to, towards)
            case ("pfctl", "-E"):
                return f"Token : {TOKEN}\n"
            case ("pfctl", "-a", anchor, "-f", "-"):
                self._anchors[anchor] = command.stdin
            case ("scutil",):
                self._seem_stored(command.stdin)
            case ("sysctl", "-w", setting):
                name, _, value = setting.partition("=")
                before = self._run(Command(("sysctl", "-n", name), changes=False)).out.strip()
                self.settings.setdefault(name, (before, value))
        return None

    def _seem_configured(self, words: Sequence[str]) -> None:
        match list(words):
            case ["mtu", size]:
                self._mtu = int(size)
            case ["up"]:
                self._flags = f"UP,{self._flags}"
            case ["inet", address, *_, "alias"]:
                self._addresses.append(f"\tinet {address.partition('/')[0]} netmask 0xffffffff")
            case ["inet6", address, *_, "alias"]:
                host, _, length = address.partition("/")
                self._addresses.append(f"\tinet6 {host} prefixlen {length or 128}")

    def _line(self, to: str, towards: Sequence[str]) -> str:
        """As `netstat -rn` shows it."""
        match list(towards):
            case ["-interface", device]:
                return f"{to} {device} USc {device}"
            case [gateway, "-reject"]:
                return f"{to} {gateway} UGSR lo0"
            case [gateway]:
                state = networks.look(self._run)
                version = ipaddress.ip_address(gateway.partition("%")[0]).version
                uplink = state.uplink(version, self.device)
                return f"{to} {gateway} UGS {uplink.name if uplink else 'en0'}"
        return f"{to} {self.device} USc {self.device}"

    def _seem_stored(self, stdin: str) -> None:
        values: list[str] = []
        for line in stdin.splitlines():
            match line.split():
                case ["d.add", name, "*", *words]:
                    items = [word for word in words if word != "#"]
                    listed = "".join(
                        f"    {number} : {'' if item == '""' else item}\n"
                        for number, item in enumerate(items)
                    )
                    values.append(f"  {name} : <array> {{\n{listed}  }}\n")
                case ["set", key]:
                    self._keys[key] = values
                case ["remove", key]:
                    self._keys.pop(key, None)

    def _asked(self, command: Command) -> ProgramAnswer:
        match command.argv:
            case ("ifconfig", name) if name == self.device:
                return ProgramAnswer(self._shown())
            case ("ifconfig", "-a") if self.device:
                answer = self._run(command)
                return answer._replace(out=f"{answer.out}{self._shown()}")
            case ("netstat", *_) if command.argv in NETSTAT.values():
                answer = self._run(command)
                family = "-inet6" if command.argv[-1] == "inet6" else "-inet"
                ours = [line for (of, _), line in self._routes.items() if of == family]
                return answer._replace(out="\n".join([answer.out.rstrip("\n"), *ours, ""]))
            case ("pfctl", "-a", anchor, "-s", "labels") if anchor in self._anchors:
                return ProgramAnswer(f"{FIRST} 1 0 0 0 0 0 0\n")
            case ("pfctl", "-a", anchor, "-s", what) if anchor in self._anchors:
                return ProgramAnswer(self._anchors[anchor] if what == "rules" else "")
            case ("scutil",) if (key := _shown_key(command.stdin)) in self._keys:
                return ProgramAnswer(f"<dictionary> {{\n{''.join(self._keys[key])}}}\n")
            case ("sysctl", "-n", name) if name in self.settings:
                return ProgramAnswer(f"{self.settings[name][1]}\n")
        answer = self._run(command)
        if answer.code and command.argv[0] == "pfctl" and os.geteuid():
            return ProgramAnswer(_DELIVERED.get(command.argv[1:], ""))
        return answer

    def _shown(self) -> str:
        head = f"{self.device}: flags=8051<{self._flags}> mtu {self._mtu}"
        return "\n".join([head, *self._addresses, ""])


def _shown_key(stdin: str) -> str:
    words = stdin.split()
    return words[1] if words[:1] == ["show"] else ""


async def client_changes(
    run: Run, make: MakeSystem, settings: TunnelSettings, closed: FilterSettings, addressed: FilterSettings
) -> list[Change]:
    """Raises CryprqError."""
    rehearsal = Rehearsal(run)
    system = make(rehearsal, rehearsal.control)
    device = system.open_device(settings)
    try:
        tun = device.name
        closed, addressed = replace(closed, tun=tun), replace(addressed, tun=tun)
        settings = replace(settings, device=tun)
        packet_filter = system.packet_filter(
            closed, _no_record, ours=False, keep_inbound=settings.keep_inbound
        )
        await device.configure(())
        routing = system.routing(settings, device.versions(), _no_record, _nothing_follows)
        await routing.apply()
        await routing.follow_exits({exit.address for exit in closed.exits})
        resolver = await system.resolver(_no_record, leave=settings.leave_resolver, state=settings.state)
        upstreams = [ipaddress.ip_address(server) for server in resolver.upstreams()]
        portal = tuple(address for address in upstreams if not address.is_link_local)
        packet_filter.update(replace(closed, portal_resolvers=portal))
        addresses = TunnelAddresses(addressed.tunnel4, addressed.tunnel6)
        await device.configure(addresses.interfaces())
        _, port = system.forwarder_places(addresses.interfaces())
        packet_filter.update(replace(addressed, portal_resolvers=portal, dns_port=port))
        await routing.carry(addresses.versions)
        asked_at = [str(RESOLVER4), *([str(RESOLVER6)] if addresses.ipv6 else [])]
        await resolver.set(asked_at, device.index(), tun)
    finally:
        device.close()
    return [_made(tun), *_in_words(rehearsal)]


async def exit_changes(run: Run, make: MakeSystem, settings: ExitNetworkSettings) -> list[Change]:
    """Raises CryprqError."""
    rehearsal = Rehearsal(run)
    system = make(rehearsal, rehearsal.control)
    device = system.open_device(settings)
    try:
        settings = replace(settings, device=device.name)
        side = await system.exit_side(settings, device, _no_record, recorded=())
        await side.close()
    finally:
        device.close()
    return [_made(device.name), *_in_words(rehearsal)]


def _no_record(entry: Entry) -> None:
    """Nothing is changed, so nothing is written down."""


async def _nothing_follows(lan: Lan) -> None:
    """Nothing stands that could follow."""


def _made(device: str) -> Change:
    return Change(f"make the device {device}, by a kernel control socket", _WITH_DEVICE)


def _in_words(rehearsal: Rehearsal) -> list[Change]:
    return [
        Change(
            shlex.join([PATHS[command.argv[0]], *command.argv[1:]]), _undo(command, rehearsal), command.stdin
        )
        for command in rehearsal.made
    ]


def _undo(command: Command, rehearsal: Rehearsal) -> str:
    path = PATHS[command.argv[0]]
    match command.argv:
        case ("ifconfig", *_):
            return _WITH_DEVICE
        case ("route", "-n", "delete", *_):
            return "set again by whoever had set it"
        case ("route", "-n", "add", *route):
            if "-interface" in route:
                return "ends with the device"
            return shlex.join([path, "-n", "delete", *route])
        case ("pfctl", "-E"):
            return f"{path} -X TOKEN, the one that -E gives"
        case ("pfctl", "-a", anchor, *_):
            return shlex.join([path, "-a", anchor, "-F", "all"])
        case ("pfctl", "-k", *_):
            return "programs open them anew"
        case ("scutil",):
            keys = [line.split()[1] for line in command.stdin.splitlines() if line.startswith("set ")]
            return f"{path}, given: remove {' '.join(keys)}" if keys else _NOTHING
        case ("sysctl", "-w", setting):
            before = rehearsal.settings[setting.partition("=")[0]][0]
            return f"{path} -w {setting.partition('=')[0]}={before}, if it is as set still"
    return _NOTHING
