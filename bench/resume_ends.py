"""The ends of the stream that bench/resume.py watches, each a process of its own that writes a line for what arrives.

python bench/resume_ends.py serve                 the server: answers, sends or takes
python bench/resume_ends.py talk --every 0.02     messages there and back, of the client: sent, arrived
python bench/resume_ends.py take                  a download: arrived before, arrived
python bench/resume_ends.py send                  an upload, of which the server writes the same
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
import time

from hosts import SERVER
from wan_load import Connection
from wan_proxies import SOCKS

PORT = 7007
MESSAGE = 32
TALK, GIVE, TAKE = b"t", b"g", b"u"
"""The first byte of a connection says what is done on it."""
ZEROS = bytes(65_536)


def serve() -> None:
    with socket.create_server(("0.0.0.0", PORT)) as listener:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_serve, args=[sock], daemon=True).start()


def _serve(sock: socket.socket) -> None:
    with sock:
        wish = sock.recv(1)
        if wish == TAKE:
            watch(sock)
        while wish == GIVE:
            sock.sendall(ZEROS)
        while wish == TALK and (data := sock.recv(65536)):
            sock.sendall(data)


def watch(sock: socket.socket) -> None:
    """Write when something comes, and when something came before."""
    before = time.monotonic()
    while sock.recv(1 << 20):
        now = time.monotonic()
        print(before, now, flush=True)
        before = now


def talk(sock: socket.socket, every: float) -> None:
    following, rest = time.monotonic(), b""
    while True:
        sock.settimeout(max(following - time.monotonic(), 0.0001))
        try:
            data = sock.recv(65536)
        except (TimeoutError, BlockingIOError):
            data = b""
        else:
            if not data:
                raise SystemExit("the stream ended")
        now, rest = time.monotonic(), rest + data
        while len(rest) >= MESSAGE:
            print(rest[:MESSAGE].decode().strip(), now, flush=True)
            rest = rest[MESSAGE:]
        if now >= following:
            sock.settimeout(None)
            sock.sendall(f"{now:.6f}".ljust(MESSAGE).encode())
            following = max(following + every, now)


async def by_proxy() -> socket.socket:
    connection = Connection(argparse.Namespace(server=(SERVER, PORT), proxy=SOCKS))
    await connection.connect()
    return connection.socket


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("end", choices=["serve", "talk", "take", "send"])
    parser.add_argument("--every", type=float, help="seconds between two messages")
    options = parser.parse_args()
    if options.end == "serve":
        serve()
    with asyncio.run(by_proxy()) as sock:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall({"talk": TALK, "take": GIVE, "send": TAKE}[options.end])
        if options.end == "talk":
            talk(sock, options.every)
        elif options.end == "take":
            watch(sock)
        while True:
            sock.sendall(ZEROS)


if __name__ == "__main__":
    main()
