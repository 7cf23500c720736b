"""ifconfig(8), as far as addresses, MTU and the flag UP are read and set."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from tests.support.macos.configd import forget_addresses
from tests.support.macos.machine import Answer, FakeMac
from tests.support.macos.state import Address, Interface, Route, State

USAGE = (
    "usage: ifconfig interface address_family [address [dest_address]]\n"
    "                [parameters]\n"
    "       ifconfig -a [-L] [-d] [-m] [-r] [-u] [-v] [address_family]\n"
    "       ifconfig -l [-d] [-u] [address_family]\n"
)
_BITS = {
    "UP": 0x1,
    "BROADCAST": 0x2,
    "LOOPBACK": 0x8,
    "POINTOPOINT": 0x10,
    "SMART": 0x20,
    "RUNNING": 0x40,
    "SIMPLEX": 0x800,
    "MULTICAST": 0x8000,
}
_MTUS = range(72, 65536)


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    match list(argv[1:]):
        case [] | ["-a"]:
            return Answer(0, "".join(map(shown, mac.read().interfaces)))
        case [str(name)] if not name.startswith("-"):
            interface = mac.read().interface(name)
            return _missing(name) if interface is None else Answer(0, shown(interface))
        case [str(name), *rest] if not name.startswith("-"):
            if mac.read().interface(name) is None:
                return _missing(name)
            with mac.change() as state:
                return _change(state, name, rest, mac.uid)
    return Answer(1, "", USAGE)


def _missing(name: str) -> Answer:
    return Answer(1, "", f"ifconfig: interface {name} does not exist\n")


def _refused(request: str, reason: str) -> Answer:
    return Answer(1, "", f"ifconfig: ioctl ({request}): {reason}\n")


def shown(interface: Interface) -> str:
    """As `ifconfig` prints it; each address with a space at its end."""
    number = sum(_BITS[flag] for flag in interface.flags)
    lines = [f"{interface.name}: flags={number:x}<{','.join(interface.flags)}> mtu {interface.mtu}"]
    if interface.ether:
        lines.append(f"\tether {interface.ether} ")
    for each in interface.addresses:
        peer = f" --> {each.peer}" if each.peer else ""
        if ip_address(each.address).version == 6:
            local = each.address.startswith("fe80:")
            zone, scope = (f"%{interface.name}", f" scopeid {interface.index:#x}") if local else ("", "")
            flags = "".join(f" {flag}" for flag in each.flags)
            lines.append(f"\tinet6 {each.address}{zone}{peer} prefixlen {each.prefix}{flags}{scope} ")
        else:
            mask = int(ip_interface(f"{each.address}/{each.prefix}").netmask)
            broadcast = f" broadcast {each.broadcast}" if each.broadcast else ""
            lines.append(f"\tinet {each.address}{peer} netmask {mask:#010x}{broadcast} ")
    if any(":" in each.address for each in interface.addresses):
        lines.append("\tnd6 options=201<PERFORMNUD,DAD>")
    if interface.status:
        lines += ["\tmedia: autoselect", f"\tstatus: {interface.status}"]
    return "\n".join(lines) + "\n"


def _change(state: State, name: str, words: Sequence[str], uid: int) -> Answer:
    interface = state.interface(name)
    assert interface is not None
    match list(words):
        case ["up" | "down"] | ["mtu", _] if uid:
            return _refused("SIOCSIFFLAGS" if len(words) == 1 else "SIOCSIFMTU", "Operation not permitted")
        case ["up"]:
            if "UP" not in interface.flags:
                interface.flags.insert(0, "UP")
            return Answer(0)
        case ["down"]:
            interface.flags = [flag for flag in interface.flags if flag != "UP"]
            return Answer(0)
        case ["mtu", str(size)]:
            if not size.isdecimal() or int(size) not in _MTUS:
                return _refused("SIOCSIFMTU", "Invalid argument")
            interface.mtu = int(size)
            return Answer(0)
        case ["inet" | "inet6", _, *_] if uid:
            return _refused("SIOCAIFADDR", "Operation not permitted")
        case ["inet", str(address), str(peer), "alias"]:
            return _add4(state, interface, address, peer)
        case ["inet6", str(address), "alias"]:
            return _add6(state, interface, address)
        case ["inet" | "inet6" as family, str(address), "-alias" | "delete"]:
            return _remove(state, interface, family, address)
    return Answer(1, "", f"ifconfig: {words[-1]}: bad value\n")


def _add4(state: State, interface: Interface, text: str, peer: str) -> Answer:
    """Only a point-to-point interface has another end, to which the kernel makes a host route. It makes none to the
    own address."""
    if "POINTOPOINT" not in interface.flags:
        return Answer(1, "", USAGE)
    try:
        address, end = IPv4Interface(text), IPv4Interface(peer).ip
    except ValueError:
        return Answer(1, "", f"ifconfig: {text}: bad value\n")
    if any(each.address == str(address.ip) for each in interface.addresses):
        return _refused("SIOCAIFADDR", "File exists")
    interface.addresses.append(Address(str(address.ip), address.network.prefixlen, peer=str(end)))
    state.routes.append(Route(f"{end}/32", str(address.ip), interface.name, "UH", source=str(address.ip)))
    return Answer(0)


def _add6(state: State, interface: Interface, text: str) -> Answer:
    """The kernel routes an IPv6 address of its own to lo0."""
    try:
        address = IPv6Interface(text)
    except ValueError:
        return Answer(1, "", f"ifconfig: {text}: bad value\n")
    if any(each.address == str(address.ip) for each in interface.addresses):
        return Answer(0)
    interface.addresses.append(Address(str(address.ip), address.network.prefixlen))
    state.routes.append(Route(f"{address.ip}/128", f"link#{interface.index}", "lo0", "UHL"))
    return Answer(0)


def _remove(state: State, interface: Interface, family: str, text: str) -> Answer:
    """All routes go whose packets would have this source."""
    address = text.partition("/")[0].partition("%")[0]
    gone = [each for each in interface.addresses if each.address == address]
    if not gone or (":" in address) != (family == "inet6"):
        return _refused("SIOCDIFADDR", "Can't assign requested address")
    forget_addresses(state, interface, gone)
    state.routes = [
        each for each in state.routes if each.interface != interface.name or each.source != address
    ]
    return Answer(0)
