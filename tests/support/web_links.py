"""A whole client and a whole exit in one process, joined by real sockets on loopback, by TCP and by WebSocket."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.dial.endpoint import CarrierKind, Endpoint
from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.settings import LaneSettings
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.leaving import MOST_LEAVING
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.settings import WebSocketSettings
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.recovery.bbr import Bbr
from cryprq_proxy.session.session import SessionLimits
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import App
from tests.support.settings import client_settings, exit_settings, session_limits
from tests.support.settle import until

PATH = "/a/path"
HERE = Destination("127.0.0.1", 0)
PLAIN = LaneSettings(UdpOffload(gso=False, gro=False), Bbr)
FAST = select_provider()
EXIT_IDENTITY = Identity.generate(FAST)
CLIENT_IDENTITY = Identity.generate(FAST)


@dataclass
class Place:
    """An exit that runs, and an echo server that it may reach."""

    exit: Exit
    tcp: Destination
    web: Destination
    echo: Destination
    clients: list[Client] = field(default_factory=list)

    def endpoint(self, carrier: CarrierKind, address: Destination | None = None) -> Endpoint:
        if carrier == "tcp":
            return Endpoint("tcp", address or self.tcp)
        return Endpoint(carrier, address or self.web, PATH)

    def client(self, *endpoints: Endpoint, **options: Any) -> Client:
        """A client that keeps up its link by these."""
        settings = client_settings(EXIT_IDENTITY.peer_id, endpoints, **options)
        client = Client(CLIENT_IDENTITY, settings, FAST)
        self.clients.append(client)
        spawn(client.run(), "link")
        return client

    async def echoes(self, client: Client, data: bytes = b"hello") -> bool:
        """Whether `data` comes back from the target."""
        stream = await client.open(self.echo)
        writing = asyncio.ensure_future(stream.write(data))
        back = bytearray()
        while len(back) < len(data):
            back += await stream.read()
        await writing
        stream.abort()
        return back == data


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


def lose_paths(client: Client) -> None:
    """All connections of `client` to its exit break, at its side first."""
    for path in list(client._link.paths.values()):
        path.carrier.drop()


def lose_sessions(exit: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nobody can join a session of `exit`, as if it had just been started."""
    monkeypatch.setattr(exit.sessions.tickets, "find", lambda ticket: None)
    monkeypatch.setattr(exit.sessions, "by_id", lambda session_id: None)


@asynccontextmanager
async def place(
    *,
    lane: LaneSettings | None = None,
    per_minute: float = 600,
    limits: SessionLimits | None = None,
    listen: Destination = HERE,
    **websocket: Any,
) -> AsyncIterator[Place]:
    """`websocket` has fields of WebSocketSettings."""
    server = await asyncio.start_server(_echo, *HERE)
    echo = Destination(*server.sockets[0].getsockname()[:2])
    resolver = SystemResolver()
    settings = exit_settings(
        listen,
        websocket=WebSocketSettings(HERE, PATH, **websocket),
        lane=lane,
        limits=limits or session_limits(),
        # Room for all sessions that run out: here they are of one exit, else each of another process.
        bounds={"handshakes_per_minute": per_minute, "sessions_per_peer": 2 * MOST_LEAVING},
    )
    exit = Exit(
        EXIT_IDENTITY,
        settings,
        {CLIENT_IDENTITY.peer_id: ""},
        EgressPolicy(allow_private=True),
        resolver,
        FAST,
    )
    tcp, web = await exit.start()
    place = Place(exit, tcp, web, echo)
    try:
        yield place
    finally:
        for client in place.clients:
            await client.stop()
        await exit.stop(0)
        resolver.close()
        server.close()
        await server.wait_closed()


def make_certificates(directory: Path, name: str = "localhost") -> tuple[Path, Path, Path]:
    """A private CA, and a certificate for `name` and 127.0.0.1 by it: CA, certificate, key, as PEM files."""

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def begun(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        begun("test CA", "test CA", ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        begun(name, "test CA", key)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    files = directory / "ca.pem", directory / "certificate.pem", directory / "key.pem"
    pem = serialization.Encoding.PEM
    files[0].write_bytes(ca.public_bytes(pem))
    files[1].write_bytes(certificate.public_bytes(pem))
    files[2].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def serial_of(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def serial_shown(address: Destination) -> int:
    """The serial number of the certificate that a TLS client sees there now. Blocks. Raises OSError where there is no
    TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(address, 20) as sock,
        context.wrap_socket(sock, server_hostname=address.host) as tls,
    ):
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


class Relay:
    """A TCP server between two sides, which a test can cut. `passed` counts bytes from the target."""

    def __init__(self, target: Destination) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.passed = 0
        self.connections = 0
        self.on_passed: Callable[[], None] = lambda: None
        self.server: asyncio.Server | None = None

    async def start(self) -> Destination:
        self.server = await asyncio.start_server(self._serve, *HERE)
        return Destination(*self.server.sockets[0].getsockname()[:2])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            there_reader, there = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(there)
        if writer.transport.is_closing():  # cut meanwhile
            there.transport.abort()
        await asyncio.gather(self._pass(reader, there, False), self._pass(there_reader, writer, True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                if back:
                    self.passed += len(data)
                    self.on_passed()
        writer.close()

    def cut(self) -> None:
        """Break all that goes through."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        self.cut()
        await self.server.wait_closed()


def ask(client: Client, target: Destination, protocol: StreamProtocol = StreamProtocol.TCP) -> App:
    """The application's end of a stream that `client` is asked for."""
    app = App()

    def begin(stream: object) -> None:
        app.stream = stream  # type: ignore[assignment]

    client.request(protocol, target, app, begin)
    return app


async def opened(client: Client, target: Destination) -> App:
    """The same, when its target is connected."""
    app = ask(client, target)
    await until(lambda: ("opened",) in app.events)
    return app


async def echoes(app: App, data: bytes) -> None:
    """Send `data`, and wait until it has come back."""
    before = len(app.received)
    app.say(data)
    await until(lambda: app.received[before:] == data)
