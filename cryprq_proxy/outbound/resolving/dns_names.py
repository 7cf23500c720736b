"""Look-ups by DNS, as the host's files say: hosts file, search list, servers in turn.

    localhost -> the hosts file -> each candidate of the search list -> each server, `attempts` times -> RFC 6724

A name with `ndots` dots or more is asked for as it is and only so: with the search list behind it, it would be a name
that the peer did not ask for. (So does musl; the GNU C library would go on.) gai.conf is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ...address import is_localhost
from ...base.descriptors import EXHAUSTED
from ...errors import StreamReason
from .destination_order import by_preference
from .dns_addresses import ask_addresses
from .dns_answer import AnswerError, NameAnswer, encode_name
from .fair_slots import FairSlots
from .host_configuration import ConfigurationReader, HostConfiguration
from .name_server import NameServer
from .outcome import FoundAddresses, LookupResult

SLOTS: Final = 64
"""Names looked up at once, each with two sockets."""
WAITING_EACH: Final = 1024
WAITING: Final = 8192
"""Names that may wait for a slot, of one asker and of all."""
LOOKUP_SECONDS: Final = 20.0
"""For all candidates, servers and attempts of one name."""
SILENT_SECONDS: Final = 30.0
"""How long a server that was silent is asked after the others, so that a dead one does not delay each name."""
LOCALHOST: Final = ("::1", "127.0.0.1")
PORT: Final = 53


class DnsNames:
    """The NameSource that asks the host's DNS servers itself."""

    cancellable = True

    def __init__(self, reader: ConfigurationReader, *, slots: int = SLOTS, port: int = PORT) -> None:
        self.slots = FairSlots(slots, waiting_each=WAITING_EACH, waiting=WAITING)
        self._reader = reader
        self._port = port
        self._turn = 0
        self._silent: dict[str, float] = {}
        """Until when a server is asked last: at most as many as the host has had servers."""

    async def look_up(self, name: str) -> LookupResult:
        """See NameSource."""
        configuration = await self._reader.current()
        known = from_files(name.lower().removesuffix("."), configuration)
        if known:
            return FoundAddresses(known, 0.0)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self._ask(name, configuration)
        except TimeoutError:
            return StreamReason.NAME_TIMED_OUT
        if isinstance(found, StreamReason):
            return found
        return FoundAddresses(by_preference(found.addresses), found.seconds)

    def close(self) -> None:
        """See NameSource."""
        self.slots.close()

    async def _ask(self, name: str, configuration: HostConfiguration) -> NameAnswer | StreamReason:
        failure = StreamReason.NAME_NOT_FOUND
        for candidate in candidates(name, configuration):
            wire = encode_name(candidate)
            if wire is None:
                continue
            found = await self._ask_servers(wire, configuration)
            if not isinstance(found, StreamReason):
                if found.addresses:
                    return found
            elif found is StreamReason.NAME_FAILED:
                # Another candidate may be another zone, with servers that work.
                failure = found
            else:
                return found
        return failure

    async def _ask_servers(self, name: bytes, configuration: HostConfiguration) -> NameAnswer | StreamReason:
        """Ask one server after the other; those that have failed are asked once, those that are silent again."""
        failure = StreamReason.NAME_TIMED_OUT
        left = list(self._servers(configuration))
        for attempt in range(configuration.attempts):
            seconds = configuration.seconds
            if attempt:
                seconds = max(1.0, seconds * 2**attempt / len(configuration.servers))
            for server in list(left):
                try:
                    return await ask_addresses(server, name, seconds, only_tcp=configuration.only_tcp)
                except TimeoutError:
                    self._silent[server.address] = _now() + SILENT_SECONDS
                    continue
                except OSError as error:
                    if error.errno in EXHAUSTED:
                        return StreamReason.EXHAUSTED
                except AnswerError:
                    pass
                left.remove(server)
                failure = StreamReason.NAME_FAILED
        return failure

    def _servers(self, configuration: HostConfiguration) -> Sequence[NameServer]:
        servers = [NameServer(address, self._port) for address in configuration.servers]
        if configuration.rotate:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        now = _now()
        return sorted(servers, key=lambda server: self._silent.get(server.address, now) > now)


def _now() -> float:
    return asyncio.get_running_loop().time()


def from_files(name: str, configuration: HostConfiguration) -> tuple[str, ...]:
    """The addresses of the hosts file; of localhost also if it has none (RFC 6761 section 6.3)."""
    known = configuration.hosts.get(name, ())
    return known or (LOCALHOST if is_localhost(name) else ())


def candidates(name: str, configuration: HostConfiguration) -> Sequence[str]:
    """The names to ask for, in this order."""
    if name.endswith(".") or name.count(".") >= configuration.dots:
        return (name,)
    return (*(f"{name}.{domain}" for domain in configuration.search), name)
