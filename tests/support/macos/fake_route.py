"""route(8), as far as routes are added, deleted, changed and asked for.

It ends with 0 whatever the kernel says to a change: only its words tell. Without `-q` it prints what it has done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from tests.support.macos.machine import Answer, FakeMac
from tests.support.macos.state import Interface, Route, State

USAGE = "usage: route [-dnqtv] command [[modifiers] args]\n"
_USAGE_CODE, _NO_HOST, _NO_PERMISSION = 64, 68, 77
_EXISTS, _GONE, _UNREACHABLE = "File exists", "not in table", "Network is unreachable"


_MODIFIERS: dict[str, tuple[str, object]] = {
    "-inet": ("version", 4),
    "-inet6": ("version", 6),
    "-net": ("net", True),
    "-host": ("host", True),
    "-interface": ("by_interface", True),
    "-iface": ("by_interface", True),
    "-reject": ("reject", True),
    "-blackhole": ("blackhole", True),
}


@dataclass
class Request:
    """What the modifiers and arguments say."""

    version: int = 4
    destination: IPv4Network | IPv6Network | None = None
    gateway: str = ""
    by_interface: bool = False
    net: bool = False
    host: bool = False
    reject: bool = False
    blackhole: bool = False
    scope: str = ""

    @property
    def is_host(self) -> bool:
        assert self.destination is not None
        return not self.net and self.destination.prefixlen == self.destination.max_prefixlen


class Botched(Exception):
    """The answer to arguments that route does not take."""

    def __init__(self, text: str, code: int = _USAGE_CODE) -> None:
        super().__init__(text)
        self.answer = Answer(code, "", f"route: {text}\n" + (USAGE if code == _USAGE_CODE else ""))


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    quiet, words = False, list(argv[1:])
    while words and words[0].startswith("-") and set(words[0][1:]) <= set("dnqtv"):
        quiet |= "q" in words.pop(0)[1:]
    verb = words.pop(0) if words else ""
    try:
        if verb not in ("add", "delete", "change", "get"):
            raise Botched(f"botched keyword: {verb}")
        request = read(words)
        if verb == "get":
            return _get(mac.read(), request)
        if mac.uid:
            raise Botched("must be root to alter routing table", _NO_PERMISSION)
        with mac.change() as state:
            refusal = _CHANGES[verb](state, request)
    except Botched as error:
        return error.answer
    assert request.destination is not None
    said = f"{verb} {'host' if request.is_host else 'net'} {request.destination.network_address}"
    said += f": gateway {request.gateway}" if request.gateway else ""
    complaint = f"route: writing to routing socket: {refusal}\n" if refusal else ""
    return Answer(0, "" if quiet else said + (f": {refusal}" if refusal else "") + "\n", complaint)


def read(words: Sequence[str]) -> Request:
    """Raises Botched for what route does not take."""
    request, plain, rest = Request(), list[str](), list(words)
    while rest:
        word = rest.pop(0)
        if word in _MODIFIERS:
            name, value = _MODIFIERS[word]
            setattr(request, name, value)
        elif word == "-ifscope" and rest:
            request.scope = rest.pop(0)
        elif word == "-gateway" and rest:
            plain.append(rest.pop(0))
        elif word.startswith("-"):
            raise Botched(f"botched keyword: {word[1:]}")
        else:
            plain.append(word)
    if not 1 <= len(plain) <= 2:
        raise Botched("botched keyword: ")
    request.destination = _destination(plain[0], request)
    request.gateway = plain[1] if len(plain) > 1 else ""
    return request


def _destination(text: str, request: Request) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(("0.0.0.0/0", "::/0")[request.version == 6] if text == "default" else text)
    except ValueError:
        raise Botched(f"bad address: {text}", _NO_HOST) from None
    if network.version != request.version:
        raise Botched(f"bad address: {text}", _NO_HOST)
    return network


def _key(route: Route, request: Request) -> bool:
    """Whether it is the route of this request: in the kernel's tree a host and a prefix of one address are two."""
    scoped = "I" in route.flags
    return (
        route.destination == str(request.destination)
        and ("H" in route.flags) == request.is_host
        and (scoped and route.interface == request.scope if request.scope else not scoped)
    )


def _add(state: State, request: Request) -> str:
    if not request.gateway:
        return "Invalid argument"
    interface = _towards(state, request)
    if interface is None:
        return _UNREACHABLE
    if any(_key(route, request) for route in state.routes):
        return _EXISTS
    state.routes.append(_made(request, interface))
    return ""


def _delete(state: State, request: Request) -> str:
    found = [route for route in state.routes if _key(route, request)]
    if not found:
        return _GONE
    state.routes.remove(found[0])
    return ""


def _change(state: State, request: Request) -> str:
    return _delete(state, request) or _add(state, request)


_CHANGES = {"add": _add, "delete": _delete, "change": _change}


def _made(request: Request, interface: Interface) -> Route:
    flags = "U" + ("" if request.by_interface else "G") + ("H" if request.is_host else "")
    flags += ("R" if request.reject else "") + ("B" if request.blackhole else "") + "S"
    flags += ("" if request.is_host else "c") + ("I" if request.scope else "")
    return Route(
        str(request.destination),
        request.gateway,
        interface.name,
        flags,
        source=next(
            (
                each.address
                for each in interface.addresses
                if ip_address(each.address).version == request.version
                and not each.address.startswith("fe80:")
            ),
            "",
        ),
    )


def _towards(state: State, request: Request) -> Interface | None:
    """The interface of the gateway; None where nothing leads to it. Raises Botched."""
    if request.by_interface:
        found = state.interface(request.gateway)
        if found is None:
            raise Botched(f"bad address: {request.gateway}", _NO_HOST)
        return found
    address, _, zone = request.gateway.partition("%")
    try:
        gateway = ip_address(address)
    except ValueError:
        raise Botched(f"bad address: {request.gateway}", _NO_HOST) from None
    if gateway.version != request.version:
        raise Botched(f"bad address: {request.gateway}", _NO_HOST)
    if gateway.is_link_local and gateway.version == 6:
        return state.interface(zone)
    return next_interface(state, gateway)


def best(state: State, address: IPv4Address | IPv6Address) -> Route | None:
    """The route that a program's packet takes which is bound to no interface."""
    found = [
        route
        for route in state.routes
        if "I" not in route.flags and address in ip_network(route.destination) and _usable(state, route)
    ]
    return max(found, key=lambda route: ip_network(route.destination).prefixlen, default=None)


def _usable(state: State, route: Route) -> bool:
    interface = state.interface(route.interface)
    return interface is not None and "UP" in interface.flags


def next_interface(state: State, address: IPv4Address | IPv6Address) -> Interface | None:
    route = best(state, address)
    return None if route is None or "R" in route.flags else state.interface(route.interface)


def _get(state: State, request: Request) -> Answer:
    assert request.destination is not None
    asked = request.destination.network_address
    route = best(state, asked)
    if route is None:
        return Answer(0, "", f"route: writing to routing socket: {_GONE}\n")
    prefix = ip_network(route.destination)
    name = "default" if not prefix.prefixlen else str(prefix.network_address)
    lines = [f"   route to: {asked}", f"destination: {name}"]
    if "H" not in route.flags:
        lines.append(f"       mask: {prefix.netmask if prefix.prefixlen else 'default'}")
    if "G" in route.flags:
        lines.append(f"    gateway: {route.gateway}")
    lines += [f"  interface: {route.interface}", "      flags: <UP,DONE,STATIC>"]
    lines.append(
        " recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire\n"
        "       0         0         0         0         0         0      1500         0 "
    )
    return Answer(0, "\n".join(lines) + "\n")
