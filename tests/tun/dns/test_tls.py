"""DNS over TLS and over HTTPS, against real servers on loopback with certificates of a throwaway authority."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import StreamReset
from cryprq_proxy.outbound.bytestream import ByteStream, SocketStream
from tests.support.dns_fakes import address, answer_of, inquiry, query, stream_pair
from tests.support.settings import dns_settings
from tun.dns.codes import SERVFAIL
from tun.dns.forwarder import Forwarder
from tun.dns.framed import UpstreamError
from tun.dns.https import MAX_CONNECTIONS, HttpsUpstream
from tun.dns.setup import build
from tun.dns.tls import TlsStream, client_context

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Authority:
    """Signs certificates; `client` trusts it and nobody else."""

    directory: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throwaway")])
        self.root = self._sign(self.name, self.key, x509.BasicConstraints(True, None), [])

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        constraints: x509.BasicConstraints,
        names: list[x509.GeneralName],
        days: int = 36_500,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=3650))
            .not_valid_after(NOW - datetime.timedelta(days=3650) + datetime.timedelta(days=days))
            .add_extension(constraints, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        else:
            usage = x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, *names: str, days: int = 36_500) -> ssl.SSLContext:
        """A server that is called so."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
            for name in names
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = self._sign(subject, key, x509.BasicConstraints(False, None), alternative, days)  # type: ignore[arg-type]
        path = self.directory / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def client(self) -> ssl.SSLContext:
        context = client_context()
        context.load_verify_locations(cadata=self.root.public_bytes(serialization.Encoding.PEM).decode())
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A TLS server on loopback; yields its port."""
    clients = set()

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        try:
            await serve(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(quietly, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in clients:
            writer.close()


async def to_loopback(destination: Destination) -> ByteStream:
    """What the exit would do: whatever the name, the server is here."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", destination.port))
    return SocketStream(sock)


def forwarder(upstream: str, context: ssl.SSLContext, **options: float) -> Forwarder:
    async def no_resolver() -> ByteStream:
        raise AssertionError("the exit's resolver must not be asked")

    settings = dns_settings(upstreams=(upstream,), **options)
    return build(settings, resolver=no_resolver, connect=to_loopback, context=lambda: context)


async def ask(forwarder: Forwarder, name: str = "www.example.") -> dns.message.Message:
    answer = await answer_of(forwarder, query(name), tcp=True)
    assert answer is not None
    return dns.message.from_wire(answer)


async def serve_dot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        length = int.from_bytes(await reader.readexactly(2))
        assert length % 128 == 0
        answer = address(dns.message.from_wire(await reader.readexactly(length)))
        writer.write(len(answer).to_bytes(2) + answer)
        await writer.drain()


async def test_dns_over_tls(authority: Authority) -> None:
    async with listening(serve_dot, authority.server("dns.example")) as port:
        asker = forwarder(f"tls://192.0.2.53:{port}#dns.example", authority.client())
        answers = await asyncio.gather(*(ask(asker, f"n{i}.example.") for i in range(200)))
        assert [str(answer.answer[0].name) for answer in answers] == [f"n{i}.example." for i in range(200)]
        asker.close()


async def test_a_certificate_for_an_address(authority: Authority) -> None:
    async with listening(serve_dot, authority.server("192.0.2.53")) as port:
        asker = forwarder(f"tls://192.0.2.53:{port}", authority.client())
        assert (await ask(asker)).answer
        asker.close()


@pytest.mark.parametrize("way", ["tls", "https"])
async def test_another_name_is_not_believed(authority: Authority, way: str) -> None:
    async with listening(serve_dot, authority.server("evil.example")) as port:
        asker = forwarder(f"{way}://192.0.2.53:{port}#dns.example", authority.client())
        assert (await ask(asker)).rcode() == SERVFAIL
        assert "certificate is not valid" in asker.status().upstreams[0].last_error
        asker.close()


async def test_an_unknown_authority_and_a_past_date_are_not_believed(authority: Authority) -> None:
    async with listening(serve_dot, authority.server("dns.example")) as port:
        asker = forwarder(f"tls://192.0.2.53:{port}#dns.example", client_context())
        assert (await ask(asker)).rcode() == SERVFAIL
        asker.close()
    async with listening(serve_dot, authority.server("dns.example", days=1)) as port:
        asker = forwarder(f"tls://192.0.2.53:{port}#dns.example", authority.client())
        assert (await ask(asker)).rcode() == SERVFAIL
        assert "expired" in asker.status().upstreams[0].last_error
        asker.close()


async def test_a_server_that_does_not_speak_tls() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing\r\n" * 10)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    asker = forwarder(f"tls://192.0.2.53:{server.sockets[0].getsockname()[1]}#dns.example", client_context())
    assert (await ask(asker)).rcode() == SERVFAIL
    assert "TLS with the server failed" in asker.status().upstreams[0].last_error
    server.close()


async def test_tls_in_small_pieces_and_both_ways_at_once(authority: Authority) -> None:
    """A stream with little room, and an echo of more than it holds."""
    mine, theirs = stream_pair(write_limit=600)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = authority.server("dns.example").wrap_bio(incoming, outgoing, server_side=True)

    async def echo() -> None:
        shaken = False
        while data := await theirs.read():
            incoming.write(data)
            try:
                if not shaken:
                    server.do_handshake()
                    shaken = True
                while True:
                    server.write(server.read(1000))
            except ssl.SSLWantReadError:
                pass
            finally:
                if outgoing.pending:
                    spawn(theirs.write(outgoing.read()), "echo")
                    await asyncio.sleep(0)

    task = spawn(echo(), "server")
    tls = TlsStream(mine, authority.client(), "dns.example")
    await tls.handshake()
    sent = bytes(range(256)) * 8
    await tls.write(sent)
    got = b""
    while len(got) < len(sent):
        got += await tls.read()
    assert got == sent
    theirs.write_eof()
    assert await tls.read() == b""
    task.cancel()


async def test_a_reset_inside_tls_is_a_reset(authority: Authority) -> None:
    mine, theirs = stream_pair()
    tls = TlsStream(mine, authority.client(), "dns.example")
    handshake = asyncio.ensure_future(tls.handshake())
    await theirs.read()
    theirs.abort()
    with pytest.raises(StreamReset):
        await handshake


# --- HTTPS ---------------------------------------------------------------------------------------------------------


@dataclass
class HttpServer:
    """Answers every POST with what `respond` makes of the DNS message in it."""

    respond: Callable[[bytes], bytes]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    busy: int = 0
    most_busy: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            await asyncio.sleep(0)
            response = self.respond(body)
            self.busy -= 1
            writer.write(response)
            await writer.drain()
            if b"connection: close" in response.lower() or not response:
                return


def ok(body: bytes, *headers: str, kind: str = "application/dns-message", status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def good(body: bytes) -> bytes:
    return ok(address(dns.message.from_wire(body)))


async def test_dns_over_https(authority: Authority) -> None:
    server = HttpServer(good)
    async with listening(server.serve, authority.server("dns.example")) as port:
        asker = forwarder(f"https://192.0.2.53:{port}/dns-query?x=1#dns.example", authority.client())
        for number in range(3):
            assert (await ask(asker, f"n{number}.example.")).answer
        assert server.connections == 1
        assert server.requests[0].startswith(b"POST /dns-query?x=1 HTTP/1.1\r\n")
        assert b"\r\nhost: dns.example:%d\r\n" % port in server.requests[0].lower()
        answers = await asyncio.gather(*(ask(asker, f"m{i}.example.") for i in range(100)))
        assert all(answer.answer for answer in answers)
        assert 1 < server.connections <= MAX_CONNECTIONS
        asker.close()


async def test_a_kept_connection_that_was_closed_costs_nothing(authority: Authority) -> None:
    server = HttpServer(good)
    async with listening(server.serve, authority.server("dns.example")) as port:
        asker = forwarder(f"https://192.0.2.53:{port}/#dns.example", authority.client())
        assert (await ask(asker)).answer
        server.respond = lambda body: setattr(server, "respond", good) or b""  # type: ignore[func-returns-value]
        assert (await ask(asker, "again.example.")).answer
        assert (server.connections, len(server.requests)) == (2, 3)
        server.respond = lambda body: ok(address(dns.message.from_wire(body)), "Connection: close")
        assert (await ask(asker, "close.example.")).answer
        assert (await ask(asker, "new.example.")).answer
        assert server.connections == 3
        asker.close()


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (ok(b"no", status="404 Not Found"), "HTTP status 404"),
        (ok(b"", "Location: https://other.example/", status="307 Temporary Redirect"), "HTTP status 307"),
        (ok(b"<html>", kind="text/html"), "no DNS message"),
        (ok(b"junk"), "another question"),
        (ok(bytes(70_000)), "too long"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n", "malformed"),
        (b"nonsense\r\n\r\n", "malformed"),
        (b"", "without an answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\nContent-Length: 100\r\n\r\nshort",
            "malformed",
        ),
    ],
    ids=["404", "redirect", "html", "junk", "long", "header", "no http", "nothing", "cut"],
)
async def test_what_is_no_answer_in_http(authority: Authority, response: bytes, text: str) -> None:
    server = HttpServer(lambda body: response)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST")
        writer.write(server.respond(b""))
        await writer.drain()

    async with listening(serve, authority.server("dns.example")) as port:
        asker = forwarder(f"https://192.0.2.53:{port}/#dns.example", authority.client())
        assert (await ask(asker)).rcode() == SERVFAIL
        assert text in asker.status().upstreams[0].last_error
        asker.close()


async def test_a_request_given_up_ends_its_connection_and_frees_its_place() -> None:
    opened = []

    async def open_stream() -> ByteStream:
        mine, theirs = stream_pair()
        opened.append(theirs)
        return mine

    upstream = HttpsUpstream(open_stream, "dns.example", "/")
    asked = [asyncio.ensure_future(upstream.ask(inquiry())) for _ in range(MAX_CONNECTIONS + 1)]
    while len(opened) < MAX_CONNECTIONS:
        await asyncio.sleep(0)
    await opened[0].read()
    assert len(opened) == MAX_CONNECTIONS
    asked[0].cancel()
    while len(opened) == MAX_CONNECTIONS:
        await asyncio.sleep(0)
    assert opened[0].aborted
    upstream.close()
    for result in await asyncio.gather(*asked[1:], return_exceptions=True):
        assert isinstance(result, UpstreamError)
