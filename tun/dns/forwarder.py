"""The forwarder: a question in, an answer out, with as little as possible asked of others.

    parse -> special names, blocklist, no IPv6 -> cache -> an equal question that waits -> upstreams
                                                    `-- stale, when these fail or take too long (RFC 8767)

`consider` does all that needs no waiting and answers most questions; `resolve` waits for upstreams. One task asks for
each distinct question, and goes on when all clients that wait for it have left: its answer is for the cache. Waiting
questions are bounded in number and in time, so each gets an answer soon, whatever the network does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Final

from cryprq_proxy.base.clock import clock
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.rules.lists import ListedNames
from cryprq_proxy.status import DnsCounters, DnsStatus

from . import codes
from .answer import Answer, encode, synthesise
from .blocklist import blocks
from .cache import Cache, Hit
from .codes import Key
from .framed import UpstreamError
from .inquiry import Inquiry
from .names import OWN_NAME, Local, served, special, split_text
from .query import BadQuery, Query, error_reply, parse_query
from .settings import DnsSettings
from .upstreams import Group

_log = logging.getLogger(__name__)

FAILURE_SECONDS: Final = 5.0
"""How long it is remembered that a server failed to find an answer."""
UNREACHABLE_SECONDS: Final = 1.0
"""The same when no server answered: what RFC 9520 section 3.2 asks for at least."""
STALE_RECHECK_SECONDS: Final = 10.0
"""How long stale answers are given at once after upstreams failed (RFC 8767 section 5 calls it the recheck timer)."""
UNANSWERED_SAID: Final = 5
"""Questions in a row without an answer until the log says so: less may be one domain whose servers are silent."""


_LOOPBACK: Final = IPv4Address("127.0.0.1")

type Blocks = Callable[[bytes], bool]
"""Whether a name, in lower-case wire form, has no answer."""


def blocks_nothing(name: bytes) -> bool:
    """The `Blocks` of no rules."""
    return False


class Forwarder:
    """Answers questions. `clock` is in seconds; timers are those of the running loop."""

    def __init__(
        self,
        settings: DnsSettings,
        upstream: Group,
        split: Mapping[bytes, Group],
        blocklist: ListedNames,
        clock: Callable[[], float] = clock,
        also_blocks: Blocks = blocks_nothing,
    ) -> None:
        """`split`: domain (names.split_domain) -> its servers. `also_blocks` is asked beside the blocklist."""
        self._settings = settings
        self._also_blocks = also_blocks
        self._upstream = upstream
        self._split = split
        self._blocklist = blocklist
        self._clock = clock
        self._ipv6 = settings.ipv6
        self._own_page: IPv4Address | None = None
        self._cache = Cache(settings.cache_entries, settings.cache_bytes, settings.stale)
        self._asking: dict[Key, asyncio.Task[Answer | None]] = {}
        self._waiting = 0
        self._closed = False
        self._unanswered = 0
        """Questions since the last answer."""
        self._said_failing = False
        self.counters = DnsCounters()

    def block(self, names: ListedNames) -> None:
        """These from now on, in place of the blocklist."""
        self._blocklist = names

    def answer_own_name(self, address: IPv4Address | None) -> None:
        """OWN_NAME has this address from now on, or does not exist."""
        self._own_page = address

    # --- questions -------------------------------------------------------------------------------------------------

    def consider(self, wire: bytes, *, tcp: bool) -> bytes | Query | None:
        """What can be said of a client's message at once: the reply, None for no reply, or a question for `resolve`.

        Raises nothing, whatever the message.
        """
        counters = self.counters
        counters.questions += 1
        try:
            query = parse_query(wire)
        except BadQuery as bad:
            counters.malformed += 1
            return bad.reply
        limit = codes.MAX_MESSAGE if tcp else query.payload
        if self._own_page is not None and query.name == OWN_NAME:
            counters.local += 1
            return encode(_address_answer(query, self._own_page), query, limit)
        local = special(query.name, split=served(self._split, query.name) is not None)
        if local is not None:
            counters.local += 1
            return encode(_local_answer(query, local), query, limit)
        if blocks(self._blocklist, query.name) or self._also_blocks(query.name):
            counters.blocked += 1
            return encode(self._blocked_answer(query), query, limit, ede=codes.EDE_BLOCKED)
        if query.rdtype == codes.AAAA and not self._ipv6:
            counters.local += 1
            return encode(synthesise(query, codes.NOERROR), query, limit)
        hit = self._cache.get(query.key, self._clock())
        if hit is not None and hit.fresh:
            counters.cache_hits += 1
            return encode(hit.answer, query, limit, age=hit.age)
        if self._cache.failed(query.key, self._clock()):
            return self._without_upstream(query, limit, hit)
        return query

    async def resolve(self, query: Query, *, tcp: bool) -> bytes:
        """The reply to what `consider` left open, after at most the time set for upstreams."""
        limit = codes.MAX_MESSAGE if tcp else query.payload
        key = query.key
        task = self._asking.get(key)
        most = self._settings.questions
        if self._closed or self._waiting >= most or (task is None and len(self._asking) >= most):
            self.counters.overload += 1
            return error_reply(query, codes.SERVFAIL)
        merged = task is not None
        if task is None:
            task = self._asking[key] = spawn(self._ask(key), "dns question")
        self._waiting += 1
        try:
            stale = self._cache.get(key, self._clock()) is not None
            done, _ = await asyncio.wait((task,), timeout=self._settings.stale_wait if stale else None)
        finally:
            self._waiting -= 1
        answer = None if not done or task.cancelled() else task.result()
        if answer is None:
            return self._without_upstream(query, limit, self._cache.get(key, self._clock()))
        if merged:
            self.counters.merged += 1
        else:
            self.counters.upstream += 1
        return encode(answer, query, limit)

    async def _ask(self, key: Key) -> Answer | None:
        """Ask upstreams for all clients that wait, and remember what came; None for a failure."""
        group = served(self._split, key[0]) or self._upstream
        ipv6 = self._ipv6
        said = None
        try:
            answer = await group.ask(Inquiry(key), ipv6=ipv6)
        except UpstreamError as failure:
            _log.debug("a question failed: %s", failure)
            self._note(group, failure)
            failed_for = UNREACHABLE_SECONDS
        else:
            if answer.rcode in (codes.NOERROR, codes.NXDOMAIN, codes.YXDOMAIN):
                self._note(group, None)
                if ipv6 is self._ipv6:
                    self._cache.put(key, answer, self._clock())
                return answer
            failed_for, said = FAILURE_SECONDS, answer
        finally:
            del self._asking[key]
        now = self._clock()
        if self._cache.get(key, now) is not None:
            failed_for = STALE_RECHECK_SECONDS
        self._cache.fail(key, now, failed_for, said)
        return None

    def _note(self, group: Group, failure: UpstreamError | None) -> None:
        """Log once that names fail, and once that they are found again. While the link is down that is said of it."""
        if group is not self._upstream or not group.link_up:
            return
        if failure is None:
            if self._said_failing:
                _log.info("names are found again")
            self._unanswered, self._said_failing = 0, False
            return
        self._unanswered += 1
        if not self._said_failing and (failure.unreachable or self._unanswered >= UNANSWERED_SAID):
            self._said_failing = True
            servers = ", ".join(member.status.name for member in group.members)
            _log.warning("no name is found, as what tun.dns.upstreams names (%s) fails: %s", servers, failure)

    def _without_upstream(self, query: Query, limit: int, hit: Hit | None) -> bytes:
        """A stale answer, else the error that a server reported, else SERVFAIL."""
        if hit is None:
            self.counters.failures += 1
            said = self._cache.said(query.key)
            if said is not None:
                return encode(said, query, limit)
            return error_reply(query, codes.SERVFAIL, codes.EDE_NO_REACHABLE)
        self.counters.stale += 1
        ede = codes.EDE_STALE_NXDOMAIN if hit.answer.rcode == codes.NXDOMAIN else codes.EDE_STALE
        return encode(hit.answer, query, limit, age=hit.age, stale=not hit.fresh, ede=ede)

    def _blocked_answer(self, query: Query) -> Answer:
        if self._settings.block_answer == "nxdomain":
            return synthesise(query, codes.NXDOMAIN)
        if query.rdtype == codes.AAAA:
            return synthesise(query, codes.NOERROR, codes.AAAA, ("::",))
        if query.rdtype in (codes.A, codes.ANY):
            return synthesise(query, codes.NOERROR, codes.A, ("0.0.0.0",))
        return synthesise(query, codes.NOERROR)

    # --- the world around ------------------------------------------------------------------------------------------

    def offer_ipv6(self, offered: bool) -> None:
        """The exit (another one, perhaps) carries IPv6 or not. What was filtered otherwise is forgotten."""
        if offered is not self._ipv6:
            self._ipv6 = offered
            self._cache.clear()

    def link_lost(self) -> None:
        """The link is down. Streams that outlive that carry nothing meanwhile: new questions wait `link_wait`."""
        for group in self._groups():
            group.link_up = False

    def link_restored(self) -> None:
        """The link is up again: failures say nothing any more."""
        self._cache.forget_failures()
        for group in self._groups():
            group.recover()

    def status(self) -> DnsStatus:
        return DnsStatus(
            counters=self.counters,
            waiting=self._waiting,
            cache_entries=len(self._cache),
            cache_bytes=self._cache.bytes,
            blocklist_names=len(self._blocklist),
            in_use=self._upstream.in_use.status.name,
            upstreams=tuple(member.status for member in self._upstream.members),
            split={
                split_text(domain): tuple(member.status for member in group.members)
                for domain, group in self._split.items()
            },
        )

    def close(self) -> None:
        """End all connections. Questions that wait get SERVFAIL, and so do all from now on."""
        self._closed = True
        for task in list(self._asking.values()):
            task.cancel()
        for group in self._groups():
            group.close()

    def _groups(self) -> list[Group]:
        return [self._upstream, *self._split.values()]


def _address_answer(query: Query, address: IPv4Address) -> Answer:
    if query.rdtype in (codes.A, codes.ANY):
        return synthesise(query, codes.NOERROR, codes.A, (str(address),))
    return synthesise(query, codes.NOERROR)


def _local_answer(query: Query, local: Local) -> Answer:
    if local is Local.NAME_ERROR:
        return synthesise(query, codes.NXDOMAIN)
    if local is Local.LOCALHOST and query.rdtype == codes.AAAA:
        return synthesise(query, codes.NOERROR, codes.AAAA, ("::1",))
    if local is Local.LOCALHOST:
        return _address_answer(query, _LOOPBACK)
    if local is Local.REVERSE_LOCALHOST and query.rdtype in (codes.PTR, codes.ANY):
        return synthesise(query, codes.NOERROR, codes.PTR, ("localhost.",))
    return synthesise(query, codes.NOERROR)
