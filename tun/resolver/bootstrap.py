"""The look-up of the exit's own name outside of the tunnel, which needs it to come up.

    /etc/hosts  ->  open the filter for the earlier resolvers  ->  ask them, A and AAAA at once  ->  close the filter
                    `-- nobody answers: the last known addresses

While the tunnel is up, the system's resolver is the forwarder, which answers through the tunnel. So this module asks
the earlier resolvers, over sockets with the link's mark. The filter is open only for them, and is always closed after.
A resolver on this machine does not get out through that opening: `resolve_early` asks before the filter closes.

outbound/resolving/ asks the questions and reads the answers. An answer counts if it comes from the address that was
asked, with the id and the question (RFC 5452 section 9.1). All other datagrams are ignored until the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from cryprq_proxy.base.nat64 import WELL_KNOWN_NAME, translated
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError, reason_of
from cryprq_proxy.outbound.resolving.dns_addresses import ask_addresses
from cryprq_proxy.outbound.resolving.dns_answer import AnswerError, encode_name
from cryprq_proxy.outbound.resolving.hosts_file import read_hosts

from ..dns.marked_server import marked_server
from ..routing.marked_socket import marked_socket
from .known_addresses import MAX_ADDRESSES, KnownAddresses

_log = logging.getLogger(__name__)

type OpenFilter = Callable[[Sequence[str]], AbstractAsyncContextManager[None]]
"""`async with opening(resolvers)`: while it lasts, marked packets to port 53 of these addresses pass the filter."""

PORT: Final = 53
HOSTS: Final = Path("/etc/hosts")
MAX_HOSTS: Final = 1 << 20
"""Bytes of the hosts file that are read; a blocklist in it may be longer."""
SECONDS: Final = 2.0
"""Seconds for one resolver over UDP, and again over TCP if its answer was too long for a datagram."""
ROUNDS: Final = 2
"""How often each resolver is asked."""
EARLY_SECONDS: Final = 3.0
"""Seconds for all names before the filter closes."""
KNOWN_SECONDS: Final = 4.0
"""Seconds for all resolvers where a last address can be used instead: dialling has some seconds more."""
MAX_RESOLVERS: Final = 4


class BootstrapError(CryprqError):
    """The exit's name could not be resolved; the text says why."""


class NameNotFoundError(BootstrapError):
    """The resolvers say that the name does not exist or has no address: asking again soon does not help."""


class Bootstrap:
    """Resolves the exit's name. `resolvers` gives the earlier resolvers; `mark` is the link's fwmark.

    The filter is open inside of `opening`. If no resolver answers, the last addresses in `known` are returned: the exit
    may still be there.
    """

    def __init__(
        self,
        resolvers: Callable[[], Sequence[str]],
        opening: OpenFilter,
        *,
        mark: int,
        known: KnownAddresses | None = None,
        port: int = PORT,
        hosts: Path = HOSTS,
        seconds: float = SECONDS,
        rounds: int = ROUNDS,
    ) -> None:
        self._resolvers = resolvers
        self._opening = opening
        self._mark = mark
        self._port = port
        self._hosts = hosts
        self._seconds = seconds
        self._rounds = rounds
        self._known = known or KnownAddresses()

    async def resolve(self, name: str) -> tuple[str, ...]:
        """The addresses of `name` (an A-label name or a literal), at least one, at most `MAX_ADDRESSES`.

        IPv6 comes first, and addresses without a route come last.

        Takes at most `rounds` x resolvers x 2 x `seconds`, for each CNAME that needs a question. Raises
        NameNotFoundError or BootstrapError.
        """
        with contextlib.suppress(ValueError):
            return (str(ipaddress.ip_address(name)),)
        found = _known_to_hosts(self._hosts, name)
        if found:
            return self._by_route(found)
        known = self._known.of(name)
        if self._known.take_fresh(name):
            return self._by_route(known)
        try:
            async with asyncio.timeout(KNOWN_SECONDS if known else None):
                found = await self._ask_outside(name)
        except NameNotFoundError:
            self._known.forget(name)
            raise
        except (BootstrapError, TimeoutError) as error:
            if not known:
                raise
            why = error if isinstance(error, BootstrapError) else f"nobody resolves the exit's name {name}"
            _log.warning("%s; its last known address is used", why)
            return self._by_route(known)
        found = self._by_route(found)
        self._known.learn(name, found)
        return found

    async def translate(self, address: ipaddress.IPv4Address) -> tuple[str, ...]:
        """What the network's NAT64 makes of `address`; empty if it has none. Raises BootstrapError."""
        return translated(address, await self._ask_outside(WELL_KNOWN_NAME))

    async def ask_early(self, name: str) -> None:
        """Learn the addresses of `name` without a fall-back; the next `resolve` with the same `known` takes them."""
        if _known_to_hosts(self._hosts, name):
            return
        try:
            self._known.learn(name, await self._ask_outside(name), fresh=True)
        except BootstrapError as error:
            _log.debug("before the filter closes: %s", error)

    async def _ask_outside(self, name: str) -> tuple[str, ...]:
        resolvers = tuple(dict.fromkeys(self._resolvers()))[:MAX_RESOLVERS]
        if not resolvers:
            raise BootstrapError(
                f"the exit's name {name} cannot be resolved, since this system names no resolver; "
                f"give the exit's IP address instead"
            )
        question = encode_name(name)
        if question is None:
            raise NameNotFoundError(f"the exit's name {name[:255]!r} is not a name that DNS can hold")
        failures: dict[str, str] = {}
        async with self._opening(resolvers):
            for _ in range(self._rounds):
                for resolver in resolvers:
                    try:
                        server = marked_server(resolver, self._mark, self._port)
                        answer = await ask_addresses(server, question, self._seconds)
                    except (AnswerError, OSError) as error:  # TimeoutError is one
                        failures[resolver] = _why(error)
                        continue
                    if not answer.addresses:
                        raise NameNotFoundError(
                            f"the exit's name {name} does not exist or has no address, says {resolver}; "
                            f"check its spelling"
                        )
                    return answer.addresses[:MAX_ADDRESSES]
        said = ", ".join(f"{resolver}: {why}" for resolver, why in failures.items())
        local = all(resolver.startswith("127.") or resolver == "::1" for resolver in resolvers)
        hint = "give the exit's IP address if this lasts"
        if local:
            hint = (
                "a resolver on this machine cannot ask others while the tunnel is down: stop this program and start it "
                "again, as it asks before the filter closes, or give the exit's IP address"
            )
        raise BootstrapError(f"the exit's name {name} cannot be resolved ({said}); {hint}")

    def _by_route(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Put addresses without a route last. Connecting a datagram socket looks for a route and sends nothing."""

        def unreachable(address: str) -> bool:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with marked_socket(family, socket.SOCK_DGRAM, self._mark) as sock:
                return sock.connect_ex((address, self._port)) != 0

        try:
            return tuple(sorted(addresses, key=unreachable))
        except OSError:
            # No socket of this family, or no permission for the mark: dialling reports it.
            return tuple(addresses)


async def resolve_early(
    names: Iterable[str], resolvers: Sequence[str], known: KnownAddresses, *, mark: int, port: int = PORT
) -> None:
    """Ask for `names` while there is no filter yet, and put the answers into `known`.

    Takes at most EARLY_SECONDS. A failure is none: `Bootstrap.resolve` tries again.
    """
    bootstrap = Bootstrap(
        lambda: resolvers, lambda _: contextlib.nullcontext(), mark=mark, known=known, port=port
    )
    asking = [spawn(bootstrap.ask_early(name), "early look-up of the exit") for name in names]
    if asking:
        _, late = await asyncio.wait(asking, timeout=EARLY_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _known_to_hosts(path: Path, name: str) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_HOSTS)
    except OSError:
        return ()
    return read_hosts(content).get(name.lower().rstrip("."), ())[:MAX_ADDRESSES]


def _why(error: AnswerError | OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError):
        return reason_of(error)
    return str(error)
