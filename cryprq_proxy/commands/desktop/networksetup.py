"""The proxy settings of macOS, used by Safari, Chromium and all that asks the system; see kept.py.

Each network service has its own, so all that are not disabled get the proxy. A setting is named "WHAT of SERVICE":

    web of Wi-Fi         on 127.0.0.1 1080    the same for secureweb and socksfirewall; "off" and a host keeps the host
    pac of Wi-Fi         on http://...        the PAC file
    discovery of Wi-Fi   off                  whether it looks for a PAC file by itself

With the proxy itself, PAC file and discovery are off, for they would go first; with the PAC file, the proxies. A proxy
that asks for a password is only switched off and on: networksetup tells no password, so it could not be put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

from ...address import Destination
from ...base import networksetup
from ...base.networksetup import KINDS, Run, discovers, pac_of, proxy_of, services
from ...errors import ConfigError, CryprqError

PAC: Final = "pac"
DISCOVERY: Final = "discovery"
_OF: Final = " of "
_PASSWORD: Final = " with a password"


class NetworkSetup:
    """The program `networksetup`. Raises CryprqError."""

    def __init__(self, run: Run | None = None) -> None:
        self._run = networksetup.run if run is None else run
        all_services = services(self._run)
        self._all = list(all_services)
        self._services = [service for service, enabled in all_services.items() if enabled]
        if not self._services:
            raise CryprqError("there is no enabled network service: see the network settings of the system")

    def manual(self, proxy: Destination) -> dict[str, str]:
        """Raises ConfigError where a proxy with a password would be lost."""
        now = self.read()
        wanted = {}
        for service in self._services:
            for kind in KINDS:
                name = f"{kind}{_OF}{service}"
                if now[name].endswith(_PASSWORD):
                    raise ConfigError(
                        f"the network service {service} has a proxy with a password, which cannot be put back "
                        "later: take it away in the network settings first, or use --pac"
                    )
                wanted[name] = f"on {proxy.host} {proxy.port}"
            wanted[f"{PAC}{_OF}{service}"] = _switched(now[f"{PAC}{_OF}{service}"], on=False)
            wanted[f"{DISCOVERY}{_OF}{service}"] = "off"
        return wanted

    def automatic(self, url: str) -> dict[str, str]:
        now = self.read()
        wanted = {}
        for service in self._services:
            wanted[f"{PAC}{_OF}{service}"] = f"on {url}"
            wanted[f"{DISCOVERY}{_OF}{service}"] = "off"
            for kind in KINDS:
                name = f"{kind}{_OF}{service}"
                wanted[name] = _switched(now[name], on=False)
        return wanted

    def read(self) -> dict[str, str]:
        found = {}
        for service in self._all:
            for kind in KINDS:
                on, host, port, has_password = proxy_of(service, kind, self._run)
                value = f"{_word(on)} {host} {port}" if host else _word(on)
                found[f"{kind}{_OF}{service}"] = value + _PASSWORD * has_password
            on, url = pac_of(service, self._run)
            found[f"{PAC}{_OF}{service}"] = f"{_word(on)} {url}" if url else _word(on)
            found[f"{DISCOVERY}{_OF}{service}"] = _word(discovers(service, self._run))
        return found

    def defaults(self) -> dict[str, str]:
        """None: what was never set cannot be told from what was taken away."""
        return {}

    def write(self, values: Mapping[str, str | None]) -> None:
        before = self.read()
        wanted = {name: value for name, value in values.items() if value is not None and name in before}
        for name, value in wanted.items():
            if value != before[name]:
                what, service = name.split(_OF, 1)
                self._set(what, service, before[name], value)
        now = self.read()
        for name, value in wanted.items():
            # A host that nobody may take away is left, switched off.
            if now[name] != value and not (value == "off" and now[name].startswith("off")):
                raise CryprqError(f"the system did not take the setting {name}")

    def restored_first(self, names: Iterable[str]) -> list[str]:
        """A PAC file goes first, where there is one, so what was a PAC file is one before the proxies change."""
        return sorted(names, key=lambda name: name.split(_OF, 1)[0] not in (PAC, DISCOVERY))

    def may_name(self, name: str) -> bool:
        what, of, service = name.partition(_OF)
        return what in (*KINDS, PAC, DISCOVERY) and bool(of and service)

    def _set(self, what: str, service: str, before: str, value: str) -> None:
        """Raises CryprqError."""
        switch, _, rest = value.partition(" ")
        if what == DISCOVERY:
            self._change("-setproxyautodiscovery", service, switch)
            return
        if what == PAC:
            verb, state, arguments, nothing = "-setautoproxyurl", "-setautoproxystate", [rest], [""]
        else:
            verb, state = f"-set{what}proxy", f"-set{what}proxystate"
            arguments, nothing = rest.rsplit(" ", 1), ["", "0"]
        if rest and rest != before.partition(" ")[2]:
            # This switches it on, too.
            self._change(verb, service, *arguments)
        elif not rest:
            with suppress(CryprqError):
                self._change(verb, service, *nothing)
        self._change(state, service, switch)

    def _change(self, *arguments: str) -> None:
        try:
            self._run(arguments)
        except CryprqError as error:
            if "admin" in str(error):
                raise CryprqError(
                    "the proxy settings of this Mac are an administrator's: run this as one of them, or with sudo"
                ) from None
            raise


def _word(on: bool) -> str:
    return "on" if on else "off"


def _switched(value: str, *, on: bool) -> str:
    """The same host or URL, on or off."""
    _, space, rest = value.partition(" ")
    return f"{_word(on)}{space}{rest}"
