"""networksetup(8): the network services and their proxies. It complains on standard output, as the real one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.support.macos.machine import Answer, FakeMac
from tests.support.macos.state import Proxy, Service

WRONG = "** Error: The parameters were not valid.\n"
ADMINS = (0, 501)
"""root, and the first user of a Mac, who is an administrator."""
_KINDS = ("web", "secureweb", "socksfirewall")


class _Refused(Exception):
    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.answer = Answer(code, said)


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    try:
        match list(argv[1:]):
            case ["-listallnetworkservices"]:
                return Answer(0, _listed(mac.read().services))
            case [option, name] if option in _GET:
                return Answer(0, _GET[option](_service(mac.read().services, name)))
            case [option, name, *values] if option in _SET:
                return _set(option, name, values, mac)
    except _Refused as refused:
        return refused.answer
    return Answer(4, f"{' '.join(argv[1:2])} is not a recognized command\n{WRONG}")


def _listed(services: list[Service]) -> str:
    lines = ["An asterisk (*) denotes that a network service is disabled."]
    lines += [service.name if service.enabled else f"*{service.name}" for service in services]
    return "\n".join(lines) + "\n"


def _service(services: list[Service], name: str) -> Service:
    found = next((service for service in services if service.name == name), None)
    if found is None:
        raise _Refused(4, f"{name} is not a recognized network service.\n{WRONG}")
    return found


def _proxy(kind: str) -> Callable[[Service], str]:
    def told(service: Service) -> str:
        proxy = service.proxies.get(kind, Proxy())
        return (
            f"Enabled: {'Yes' if proxy.enabled else 'No'}\n"
            f"Server: {proxy.server}\n"
            f"Port: {proxy.port}\n"
            f"Authenticated Proxy Enabled: {int(proxy.authenticated)}\n"
        )

    return told


def _pac(service: Service) -> str:
    pac = service.autoproxy
    return f"URL: {pac.server or '(null)'}\nEnabled: {'Yes' if pac.enabled else 'No'}\n"


def _discovery(service: Service) -> str:
    return f"Auto Proxy Discovery: {'On' if service.discovery else 'Off'}\n"


_GET: dict[str, Callable[[Service], str]] = {
    **{f"-get{kind}proxy": _proxy(kind) for kind in _KINDS},
    "-getautoproxyurl": _pac,
    "-getproxyautodiscovery": _discovery,
}


def _set(option: str, name: str, values: list[str], mac: FakeMac) -> Answer:
    if mac.uid not in ADMINS:
        raise _Refused(14, "** Error: Command requires admin privileges.\n")
    with mac.change() as state:
        _SET[option](_service(state.services, name), values)
    return Answer(0)


def _switch(values: list[str]) -> bool:
    if len(values) != 1 or values[0] not in ("on", "off"):
        raise _Refused(4, WRONG)
    return values[0] == "on"


def _set_proxy(kind: str) -> Callable[[Service, list[str]], None]:
    def change(service: Service, values: list[str]) -> None:
        if len(values) != 2 or not values[1].isdecimal() or int(values[1]) > 65535:
            raise _Refused(4, WRONG)
        # A new one has no password, and is on.
        service.proxies[kind] = Proxy(True, values[0], int(values[1]))

    return change


def _set_state(kind: str) -> Callable[[Service, list[str]], None]:
    def change(service: Service, values: list[str]) -> None:
        proxy = service.proxies.setdefault(kind, Proxy())
        proxy.enabled = _switch(values)
        if proxy == Proxy():
            del service.proxies[kind]

    return change


def _set_pac(service: Service, values: list[str]) -> None:
    if len(values) != 1:
        raise _Refused(4, WRONG)
    service.autoproxy = Proxy(True, values[0])


def _set_pac_state(service: Service, values: list[str]) -> None:
    service.autoproxy.enabled = _switch(values)


def _set_discovery(service: Service, values: list[str]) -> None:
    service.discovery = _switch(values)


_SET: dict[str, Callable[[Service, list[str]], None]] = {
    **{f"-set{kind}proxy": _set_proxy(kind) for kind in _KINDS},
    **{f"-set{kind}proxystate": _set_state(kind) for kind in _KINDS},
    "-setautoproxyurl": _set_pac,
    "-setautoproxystate": _set_pac_state,
    "-setproxyautodiscovery": _set_discovery,
}
