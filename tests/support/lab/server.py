"""The far server: HTTP, DNS, echo and iperf3 in one host of the lab, with a list of who came from where.

Its sockets belong to the host's namespace; its threads run in the process of the test, so that a test reads `visits`
and changes `dns.answers` while it runs. Everything listens on all addresses of both families, at the port numbers
below.

    GET /address        the address the request came from, as text
    GET /bytes/N        N bytes, of which each 64 KiB are the same: BLOCK
    GET /page/N         a page that fetches N objects of OBJECT bytes, and then says "loaded N of N"
    POST /bytes         the SHA-256 of the body in hex
    UDP 7, TCP 7        echo
    UDP 53, TCP 53      DNS: see `Dns`
    TCP and UDP 5201    iperf3, for one run at a time: see `FarServer.iperf3`
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import random
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.lab.net import Lab, Namespace, until

HTTP_PORT = 80
DNS_PORT = 53
ECHO_PORT = 7
IPERF_PORT = 5201
BLOCK = random.Random(7).randbytes(65536)
OBJECT = 20_000
PAGE = """<!doctype html><title>page</title><p id=result>waiting</p><script>
let loaded = 0;
for (let number = 0; number < COUNT; number++)
  fetch("/bytes/SIZE?" + number).then(answer => answer.arrayBuffer()).then(body => {
    if (body.byteLength === SIZE) loaded++;
    if (loaded === COUNT) document.getElementById("result").textContent = "loaded " + loaded + " of COUNT";
  });
</script>
""".replace("SIZE", str(OBJECT))
TTL = 60
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
RECEIVE_BUFFER = 4 << 20
"""Bytes that wait for a thread of the test, so that a busy machine loses no datagram here."""

Answer = Callable[[dns.message.QueryMessage], dns.message.Message | bytes | None]
"""From a question to its answer, to raw bytes sent as they are, or to None: silence."""


class Visit(NamedTuple):
    """One request, as the server saw it."""

    service: str
    """ "http", "dns-udp", "dns-tcp", "echo-udp" or "echo-tcp"."""
    source: str
    port: int
    what: str
    """The path, or the name and type of a DNS question."""


class Dns:
    """What the DNS server knows. Change it at any time.

    `answers` maps (name with the last dot, type) to values in zone-file form, e.g. ("a.test.", "A") to ["1.2.3.4"].
    A name without any entry is NXDOMAIN, one without entries of the type asked for gets an empty answer. Over UDP an
    answer larger than the question allows is truncated (RFC 1035 4.2.1, RFC 6891). `answer` replaces all that.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[str]] = {}
        self.answer: Answer = self.lookup
        self.ttl = TTL

    def dead(self, question: dns.message.QueryMessage) -> None:
        """An `answer`: silence."""

    def lookup(self, question: dns.message.QueryMessage) -> dns.message.Message:
        """The `answer` of a good server."""
        response = dns.message.make_response(question, recursion_available=True)
        asked = question.question[0]
        name, kind = asked.name.to_text().lower(), dns.rdatatype.to_text(asked.rdtype)
        values = self.answers.get((name, kind))
        if values:
            response.answer.append(dns.rrset.from_text(asked.name, self.ttl, "IN", kind, *values))
        elif not any(known == name for known, _ in self.answers):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response

    def wire(self, query: bytes, limit: int) -> tuple[str, bytes | None]:
        """The question as text, and the answer's bytes; garbage is answered with silence."""
        try:
            question = dns.message.from_wire(query)
        except dns.exception.DNSException:
            return f"garbage of {len(query)} bytes", None
        if not isinstance(question, dns.message.QueryMessage) or not question.question:
            return "no question", None
        asked = question.question[0]
        what = f"{asked.name.to_text().lower()} {dns.rdatatype.to_text(asked.rdtype)}"
        answer = self.answer(question)
        if answer is None or isinstance(answer, bytes):
            return what, answer
        size = min(limit, max(512, question.payload)) if limit < 65535 else limit
        try:
            return what, answer.to_wire(max_size=size)
        except dns.exception.TooBig:
            short = dns.message.make_response(question, recursion_available=True)
            short.flags |= dns.flags.TC
            return what, short.to_wire()


class _Quiet(socketserver.BaseServer):
    """A client that vanishes is no error of the server."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    far: FarServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Tcp(_Quiet, socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # and IPv4 as mapped addresses


class _Udp(_Quiet, socketserver.UDPServer):
    address_family = socket.AF_INET6
    max_packet_size = 65535

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        super().server_bind()


class _Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Quiet

    def do_GET(self) -> None:
        self.server.far.note("http", self.client_address, self.path)
        match self.path.partition("?")[0].split("/"):
            case ["", "address"]:
                self._send(_text(self.client_address[0]).encode())
            case ["", "bytes", size] if size.isdecimal():
                self._send_blocks(int(size))
            case ["", "page", count] if count.isdecimal():
                self._send(PAGE.replace("COUNT", count).encode(), "text/html")
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        self.server.far.note("http", self.client_address, self.path)
        digest, left = hashlib.sha256(), int(self.headers.get("Content-Length", "0"))
        while left and (data := self.rfile.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
        self._send(digest.hexdigest().encode())

    def _head(self, size: int, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _send(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self._head(len(body), kind)
        self.wfile.write(body)

    def _send_blocks(self, size: int) -> None:
        self._head(size)
        whole, rest = divmod(size, len(BLOCK))
        for _ in range(whole):
            self.wfile.write(BLOCK)
        self.wfile.write(BLOCK[:rest])

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _EchoTcp(socketserver.BaseRequestHandler):
    server: _Quiet

    def handle(self) -> None:
        self.server.far.note("echo-tcp", self.client_address, "")
        while data := self.request.recv(65536):
            self.request.sendall(data)


class _EchoUdp(socketserver.BaseRequestHandler):
    server: _Quiet

    def handle(self) -> None:
        data, sock = self.request
        self.server.far.note("echo-udp", self.client_address, f"{len(data)} bytes")
        sock.sendto(data, self.client_address)


class _DnsUdp(socketserver.BaseRequestHandler):
    server: _Quiet

    def handle(self) -> None:
        query, sock = self.request
        what, answer = self.server.far.dns.wire(query, 4096)
        self.server.far.note("dns-udp", self.client_address, what)
        if answer is not None:
            sock.sendto(answer, self.client_address)


class _DnsTcp(socketserver.StreamRequestHandler):
    server: _Quiet

    def handle(self) -> None:
        while len(head := self.rfile.read(2)) == 2:
            what, answer = self.server.far.dns.wire(self.rfile.read(*struct.unpack(">H", head)), 65535)
            self.server.far.note("dns-tcp", self.client_address, what)
            if answer is not None:
                self.wfile.write(struct.pack(">H", len(answer)) + answer)


def digest(size: int) -> str:
    """SHA-256 in hex of what /bytes/SIZE gives."""
    whole, rest = divmod(size, len(BLOCK))
    state = hashlib.sha256()
    for _ in range(whole):
        state.update(BLOCK)
    state.update(BLOCK[:rest])
    return state.hexdigest()


def _text(address: str) -> str:
    return address.partition("%")[0].removeprefix("::ffff:")


class FarServer:
    """All services on one host. A context manager; goes with the lab otherwise.

    `only` picks some of "http", "dns", "echo". iperf3 runs while `iperf3` is entered.
    """

    def __init__(self, lab: Lab, host: Namespace, only: tuple[str, ...] = ("http", "dns", "echo")) -> None:
        self.host = host
        self.dns = Dns()
        self._lock = threading.Lock()
        self._visits: list[Visit] = []
        self._servers: list[tuple[_Quiet, threading.Thread]] = []
        lab.on_close(self.close)
        if "http" in only:
            self._serve(_Tcp, HTTP_PORT, _Http)
        if "dns" in only:
            self._serve(_Udp, DNS_PORT, _DnsUdp)
            self._serve(_Tcp, DNS_PORT, _DnsTcp)
        if "echo" in only:
            self._serve(_Udp, ECHO_PORT, _EchoUdp)
            self._serve(_Tcp, ECHO_PORT, _EchoTcp)

    def _serve(self, kind: type[_Quiet], port: int, handler: type[socketserver.BaseRequestHandler]) -> None:
        with self.host.entered():
            server = kind(("::", port), handler)
        server.far = self
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        self._servers.append((server, thread))

    @contextmanager
    def iperf3(self) -> Iterator[None]:
        """A server for one run."""
        server = self.host.popen(["iperf3", "-s", "-1", "-p", str(IPERF_PORT)])
        try:
            until(lambda: f":{IPERF_PORT}" in self.host.run(["ss", "-Hltn"]), "iperf3 listens")
            yield
        finally:
            server.kill()
            server.wait()

    def note(self, service: str, client: tuple[Any, ...], what: str) -> None:
        with self._lock:
            self._visits.append(Visit(service, _text(client[0]), client[1], what))

    @property
    def visits(self) -> list[Visit]:
        """All so far, or since `forget`."""
        with self._lock:
            return self._visits.copy()

    def sources(self, service: str = "") -> set[str]:
        """The addresses that came to services whose name begins so."""
        return {visit.source for visit in self.visits if visit.service.startswith(service)}

    def forget(self) -> None:
        with self._lock:
            self._visits.clear()

    def close(self) -> None:
        servers, self._servers = self._servers, []
        for server, thread in servers:
            server.shutdown()
            thread.join()
            with contextlib.suppress(OSError):
                server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
