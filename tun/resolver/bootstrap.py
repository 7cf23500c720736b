"""The look-up of the exit's own name outside of the tunnel, which needs it to come up.

    /etc/hosts  ->  open the filter for the earlier resolvers  ->  ask them, A and AAAA at once  ->  close the filter
                    `-- nobody answers: the last known addresses

While the tunnel is up, the system's resolver is the forwarder, which answers through the tunnel. So this module asks
the earlier resolvers, over sockets with the link's mark. The filter is open only for them, and is always closed after.
A resolver on this machine does not get out through that opening: `resolve_early` asks before the filter closes.

dnspython reads and writes the messages (RFC 1035); its transport cannot set a mark. An answer counts if it comes from
the address that was asked, with the id and the question (RFC 5452 section 9.1). All other datagrams are ignored until
the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from cryprq_proxy.base.nat64 import WELL_KNOWN_NAME, translated
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError, reason_of

from ..dns.marked_server import MarkedServer
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
OTHER_FAMILY_SECONDS: Final = 0.3
"""Seconds for the second answer after the first one with addresses: some resolvers never answer AAAA."""
ROUNDS: Final = 2
"""How often each resolver is asked."""
EARLY_SECONDS: Final = 3.0
"""Seconds for all names before the filter closes."""
KNOWN_SECONDS: Final = 4.0
"""Seconds for all resolvers where a last address can be used instead: dialling has some seconds more."""
MAX_RESOLVERS: Final = 4
MAX_MESSAGE: Final = 16_384
"""Bytes of an answer over TCP."""
MAX_RESTARTS: Final = 4
"""Further questions for the name at the end of a chain of CNAMEs."""

_TYPES: Final = (dns.rdatatype.A, dns.rdatatype.AAAA)


class BootstrapError(CryprqError):
    """The exit's name could not be resolved; the text says why."""


class NameNotFoundError(BootstrapError):
    """The resolvers say that the name does not exist or has no address: asking again soon does not help."""


class AnswerError(CryprqError):
    """A resolver's message that is malformed, answers another question, or says that the resolver failed."""


class NameAnswer(NamedTuple):
    """One answer about one name and type: addresses, a name to ask for next, or neither (NODATA, NXDOMAIN)."""

    addresses: tuple[str, ...] = ()
    alias: dns.name.Name | None = None


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
        found = from_hosts(_read_hosts(self._hosts), name)
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
        if from_hosts(_read_hosts(self._hosts), name):
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
        try:
            question = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError):
            raise NameNotFoundError(
                f"the exit's name {name[:255]!r} is not a name that DNS can hold"
            ) from None
        failures: dict[str, str] = {}
        async with self._opening(resolvers):
            for _ in range(self._rounds):
                for resolver in resolvers:
                    try:
                        found = await self._ask(resolver, question)
                    except (AnswerError, OSError) as error:  # TimeoutError is one
                        failures[resolver] = _why(error)
                        continue
                    if not found:
                        raise NameNotFoundError(
                            f"the exit's name {name} does not exist or has no address, says {resolver}; "
                            f"check its spelling"
                        )
                    return found
        said = ", ".join(f"{resolver}: {why}" for resolver, why in failures.items())
        local = all(resolver.startswith("127.") or resolver == "::1" for resolver in resolvers)
        hint = "give the exit's IP address if this lasts"
        if local:
            hint = (
                "a resolver on this machine cannot ask others while the tunnel is down: stop this program and start it "
                "again, as it asks before the filter closes, or give the exit's IP address"
            )
        raise BootstrapError(f"the exit's name {name} cannot be resolved ({said}); {hint}")

    async def _ask(self, resolver: str, name: dns.name.Name) -> tuple[str, ...]:
        """Both families from one resolver; empty if it says that there is no address. Raises AnswerError, OSError."""
        asking = [
            spawn(self._ask_family(resolver, name, kind), f"{kind.name} of the exit") for kind in _TYPES
        ]
        try:
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            answered = any(_good(task) for task in asking)
            await asyncio.wait(asking, timeout=OTHER_FAMILY_SECONDS if answered else None)
        finally:
            for task in asking:
                task.cancel()
            results = await asyncio.gather(*asking, return_exceptions=True)
        found = [address for task in reversed(asking) for address in _good(task)]
        if found:
            return tuple(found[:MAX_ADDRESSES])
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return ()

    async def _ask_family(
        self, resolver: str, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> tuple[str, ...] | AnswerError | OSError:
        """Returns a failure instead of raising it: it is one of two answers, not a failed task."""
        try:
            for _ in range(MAX_RESTARTS + 1):
                answer = await self._exchange(resolver, dns.message.make_query(name, kind))
                if answer.alias is None:
                    return answer.addresses
                name = answer.alias
        except (AnswerError, OSError) as error:
            return error
        return AnswerError("too many CNAMEs")

    async def _exchange(self, resolver: str, query: dns.message.Message) -> NameAnswer:
        server = MarkedServer(resolver, self._mark, self._port)
        question = query.to_wire()
        wire = await server.ask_over_udp(question, partial(is_answer, query=query), self._seconds)
        if wire is None:
            try:
                wire = await server.ask_over_tcp(question, self._seconds, MAX_MESSAGE)
            except EOFError:
                raise AnswerError("the resolver closed the connection") from None
            except ValueError as error:
                raise AnswerError(str(error)) from None
        return read_answer(wire, query)

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


def read_answer(wire: bytes, query: dns.message.Message) -> NameAnswer:
    """Read `wire` as the answer to `query`. Raises AnswerError, also for an answer that is cut off."""
    if not is_answer(wire, query):
        raise AnswerError("an answer to another question")
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=False)
        if message.flags & dns.flags.TC:
            raise AnswerError("a cut answer over TCP")
        rcode = message.rcode()
        if rcode == dns.rcode.NXDOMAIN:
            return NameAnswer()
        if rcode != dns.rcode.NOERROR:
            raise AnswerError(dns.rcode.to_text(rcode))
        if not isinstance(message, dns.message.QueryMessage):
            raise AnswerError("an answer of another kind")
        chain = message.resolve_chaining()
    except (dns.exception.DNSException, ValueError, struct.error) as error:
        raise AnswerError(f"a malformed answer ({type(error).__name__})") from None
    if chain.answer is not None:
        return NameAnswer(tuple(rdata.address for rdata in list(chain.answer)[:MAX_ADDRESSES]))
    if chain.cnames:
        return NameAnswer(alias=chain.canonical_name)
    return NameAnswer()


def is_answer(wire: bytes, query: dns.message.Message) -> bool:
    """Whether `wire` begins like the answer to `query`: its id, QR set, and exactly its question (in any case)."""
    asked = query.to_wire()
    end = len(asked)
    return (
        len(wire) >= end
        and wire[:2] == asked[:2]
        and wire[2] & 0xF8 == 0x80  # QR, and opcode QUERY
        and wire[4:6] == b"\x00\x01"
        and wire[12:end].lower() == asked[12:].lower()
    )


def from_hosts(content: bytes, name: str) -> tuple[str, ...]:
    """The addresses that a hosts file (hosts(5)) gives `name`, IPv6 first, at most `MAX_ADDRESSES`."""
    wanted = name.lower().rstrip(".").encode("ascii", "replace")
    found: dict[str, int] = {}
    for line in content.split(b"\n"):
        words = line.partition(b"#")[0].split()
        if len(words) > 1 and any(word.lower().rstrip(b".") == wanted for word in words[1:]):
            try:
                address = ipaddress.ip_address(words[0].decode("ascii"))
            except ValueError:  # UnicodeDecodeError is one
                continue
            found[str(address)] = address.version
    return tuple(sorted(found, key=lambda address: -found[address]))[:MAX_ADDRESSES]


def _read_hosts(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_HOSTS)
    except OSError:
        return b""


def _good(task: asyncio.Task[tuple[str, ...] | AnswerError | OSError]) -> tuple[str, ...]:
    if not task.done() or task.cancelled():
        return ()
    result = task.result()
    return result if isinstance(result, tuple) else ()


def _why(error: AnswerError | OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError):
        return reason_of(error)
    return str(error)
