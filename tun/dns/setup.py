"""The forwarder as the settings describe it: blocklists read, upstreams made, split rules in place."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cache

from cryprq_proxy.address import Destination
from cryprq_proxy.base.clock import clock
from cryprq_proxy.base.file_access import open_own
from cryprq_proxy.errors import ConfigError, reason_of
from cryprq_proxy.outbound.bytestream import ByteStream
from cryprq_proxy.rules.lists import ListedNames

from .blocklist import load
from .codes import PADDING
from .forwarder import Blocks, Forwarder, blocks_nothing
from .framed import FramedUpstream, OpenStream, Upstream
from .https import HttpsUpstream
from .lan_server import LanServer
from .names import split_domain
from .settings import HTTPS_PORT, MAX_UPSTREAMS, DnsSettings, Scheme, UpstreamSpec, parse_upstream
from .tls import client_context, inside_tls
from .upstreams import Group, Member

type OpenTarget = Callable[[Destination], Awaitable[ByteStream]]
"""Opens a TCP stream to a target through the exit. Raises StreamRefused."""


def _upstream(
    spec: UpstreamSpec,
    resolver: OpenStream,
    connect: OpenTarget,
    context: Callable[[], ssl.SSLContext],
    mark: int,
) -> Upstream:
    if spec.scheme is Scheme.LAN:
        return LanServer(spec.destination.host, mark)
    if spec.scheme is Scheme.EXIT:
        return FramedUpstream(resolver, PADDING)

    async def open_stream() -> ByteStream:
        return await connect(spec.destination)

    if spec.scheme is Scheme.TCP:
        return FramedUpstream(open_stream)
    secured = inside_tls(open_stream, context(), spec.name)
    if spec.scheme is Scheme.TLS:
        return FramedUpstream(secured, PADDING)
    port = spec.destination.port
    host = spec.name if ":" not in spec.name else f"[{spec.name}]"
    return HttpsUpstream(secured, host if port == HTTPS_PORT else f"{host}:{port}", spec.path)


def parse_upstreams(texts: Sequence[str], where: str) -> list[UpstreamSpec]:
    """Decode a list of servers; `where` begins the error's text. Raises `ConfigError`."""
    if not 1 <= len(texts) <= MAX_UPSTREAMS:
        raise ConfigError(f"{where} names {len(texts)} servers; expected are 1 to {MAX_UPSTREAMS}")
    return [parse_upstream(text) for text in texts]


def check(settings: DnsSettings) -> None:
    """Raises ConfigError for what `build` and `load` would refuse, which is late: when half of the rest stands."""
    for spec in parse_upstreams(settings.upstreams, "dns.upstreams"):
        if spec.scheme is Scheme.LAN:
            raise ConfigError(
                f"dns.upstreams names {spec.text}, but a resolver of the LAN is asked for single domains only "
                f"(dns.split)"
            )
    for domain, texts in settings.split.items():
        split_domain(domain)
        parse_upstreams(texts, f"dns.split for {domain}")
    load((), settings.block, settings.allow)
    for path in settings.blocklists:
        try:
            open_own(path, "the blocklist").close()
        except OSError as error:
            raise ConfigError(f"the blocklist {path} cannot be read: {reason_of(error)}") from None


def build(
    settings: DnsSettings,
    *,
    resolver: OpenStream,
    connect: OpenTarget,
    mark: int = 0,
    blocklist: ListedNames | None = None,
    context: Callable[[], ssl.SSLContext] = client_context,
    clock: Callable[[], float] = clock,
    also_blocks: Blocks = blocks_nothing,
) -> Forwarder:
    """A forwarder whose every stream is opened by `resolver` (the exit's resolver, DNS over TCP framing) or `connect`.

    Only resolvers of the LAN are asked by sockets of this machine, with the link's `mark`.

    `blocklist` saves reading the files here, which blocks for a second or two when they are large: `load` them on a
    thread. `also_blocks` is asked beside it. `context` makes the TLS context, once. Raises `ConfigError`.
    """
    context = cache(context)

    def group(texts: Sequence[str], where: str) -> Group:
        members = [
            Member(spec.text, _upstream(spec, resolver, connect, context, mark), clock)
            for spec in parse_upstreams(texts, where)
        ]
        return Group(members, settings, clock)

    split = {
        split_domain(domain): group(texts, f"dns.split for {domain}")
        for domain, texts in settings.split.items()
    }
    if blocklist is None:
        blocklist = load(settings.blocklists, settings.block, settings.allow)
    upstream = group(settings.upstreams, "dns.upstreams")
    return Forwarder(settings, upstream, split, blocklist, clock, also_blocks)
