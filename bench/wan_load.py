"""The load of bench/wan.py: a process in the client's host that loads its server, by a SOCKS5 proxy or straight.

    python bench/wan_load.py page --proxy 1080 --downloads 4

One test a call; the last line of its output is its result as JSON, with the wall and CPU seconds that the test took
of this process. It looks at every byte that it gets: an answer that is short, wrong or refused ends it with a sentence
and code 1, and is never a figure. Everything is one thread and one event loop. A download is read each
millisecond and not for each segment, so that this takes little of the processor that the proxies need. (SO_RCVLOWAT
would do that too, but holds the kernel's window where it is: 10 Mbit/s at 50 ms.)

    page        objects of 20 kB, some at a time, a fresh connection each, beside so many downloads
    requests    small ones, each on a fresh connection or each worker on its own, beside so many downloads
    streams     downloads for some seconds; the first ones are left out
    silence     one download, which says "flowing" when it flows; the longest time without a byte in it
    late        one stream, on which the server says its time after pauses (wan_clock.py); how late that came
    cold        waits for the proxy's port, then one small request at once
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache

from wan_clock import PORT as CLOCK_PORT
from wan_clock import TIME

OBJECTS = 100
OBJECT = 20_000
SMALL = 1_000
LARGE = 8 << 30
"""Bytes of the one large file: all zero."""
AT_A_TIME = 6
"""Connections of a browser to one host."""
ZEROS = bytes(512 << 10)
PAUSE = 0.001
"""Seconds between two reads of a download, for each download there is."""
LOCAL_BUFFER = 1 << 20
PATIENCE = 60.0
"""Seconds that any one step may take."""
POLL = 0.002
STILL = 1.0
"""Seconds of silence after which a download does not go on."""

Result = dict[str, object]


class WrongAnswer(Exception):
    """str() says what was wrong."""


@cache
def content(name: str) -> bytes:
    """What the server has under /NAME, where NAME is a size in bytes, a dash and a number."""
    size, _, number = name.partition("-")
    return random.Random(int(number)).randbytes(int(size))


class Connection:
    """One connection to the server. Raises WrongAnswer and OSError."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._loop = asyncio.get_running_loop()
        self._server: tuple[str, int] = options.server
        self._proxy: int = options.proxy
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def connect(self) -> None:
        if not self._proxy:
            await self._loop.sock_connect(self.socket, self._server)
            return
        # RFC 1928, as applications do it: each step waits for its answer.
        await self._loop.sock_connect(self.socket, ("127.0.0.1", self._proxy))
        await self.say(b"\x05\x01\x00")
        if await self.exactly(2) != b"\x05\x00":
            raise WrongAnswer("the proxy wants a password")
        host, port = self._server
        await self.say(b"\x05\x01\x00\x01" + socket.inet_aton(host) + port.to_bytes(2))
        reply = await self.exactly(10)
        if reply[:2] != b"\x05\x00" or reply[3] != 1:
            raise WrongAnswer(f"the proxy refuses, by SOCKS reply {reply[1]}")

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self._some(size - len(data))
        return data

    async def _some(self, size: int) -> bytes:
        piece = await self._loop.sock_recv(self.socket, size)
        if not piece:
            raise WrongAnswer("a connection ended early")
        return piece

    async def ask(self, name: str, size: int) -> bytes:
        """Requests /NAME, which has `size` bytes; gives those that came with the head of the answer."""
        await self.say(f"GET /{name} HTTP/1.1\r\nHost: server\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._some(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        if not lines[0].startswith(b"http/1.1 200") or b"content-length: %d" % size not in lines:
            raise WrongAnswer(f"the answer for /{name} begins with {head[:200]!r}")
        return body

    async def get(self, name: str) -> None:
        """One whole object, compared with what it has to be."""
        expected = content(name)
        body = await self.ask(name, len(expected))
        pieces, count = [body], len(body)
        while count < len(expected):
            pieces.append(await self._some(len(expected) - count))
            count += len(pieces[-1])
        if b"".join(pieces) != expected:
            raise WrongAnswer(f"the body of /{name} is wrong")

    def close(self) -> None:
        self.socket.close()


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Connection]:
    connection = Connection(options)
    try:
        yield connection
    finally:
        connection.close()


class Downloads:
    """Streams of the large file, from start() until stop()."""

    def __init__(self, options: argparse.Namespace, count: int) -> None:
        self._options = options
        self._count = count
        self._tasks: list[asyncio.Task[None]] = []
        self.counts = [0] * count
        """Bytes of each so far."""
        self.silence = 0.0
        """The longest time in which none got a byte."""
        self._last = time.monotonic()

    async def start(self) -> None:
        """Returns when each has got its first bytes."""
        self._tasks = [asyncio.ensure_future(self._run(index)) for index in range(self._count)]
        deadline = time.monotonic() + PATIENCE
        while not all(self.counts):
            self.check()
            if time.monotonic() > deadline:
                raise WrongAnswer(f"a download got nothing within {PATIENCE:.0f} s")
            await asyncio.sleep(0.01)

    async def _run(self, index: int) -> None:
        loop, buffer = asyncio.get_running_loop(), bytearray(len(ZEROS))
        with opened(self._options) as connection:
            if self._options.proxy:
                # On this host the kernel would let no more wait than comes between two reads, and it stays at that.
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOCAL_BUFFER)
            await connection.connect()
            self.counts[index] = len(await connection.ask("large", LARGE))
            sock = connection.socket
            while True:
                size = await loop.sock_recv_into(sock, buffer)
                if not size or not ZEROS.startswith(memoryview(buffer)[:size]):
                    raise WrongAnswer("a download ended early" if not size else "a download got wrong bytes")
                self.counts[index] += size
                now = time.monotonic()
                self.silence, self._last = max(self.silence, now - self._last), now
                await asyncio.sleep(PAUSE * self._count)

    def measure_silence(self) -> None:
        """Counts from now on."""
        self.silence, self._last = 0.0, time.monotonic()

    def silent_for(self) -> float:
        """Seconds since the last byte."""
        return time.monotonic() - self._last

    def check(self) -> None:
        """Raises what ended one of them."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Raises what ended one of them before."""
        self.check()
        await self.end()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def beside_downloads(
    options: argparse.Namespace, work: Callable[[], Awaitable[Result]], warm: float
) -> Result:
    """What `work` gives while the downloads run that the options ask for, after they ran for `warm` seconds."""
    downloads = Downloads(options, options.downloads)
    await downloads.start()
    if options.downloads:
        await asyncio.sleep(warm)
    before, start = sum(downloads.counts), time.monotonic()
    result = await work()
    seconds = time.monotonic() - start
    result["beside_mbit"] = (sum(downloads.counts) - before) * 8 / seconds / 1e6
    await downloads.stop()
    return result


async def page(options: argparse.Namespace) -> Result:
    """Seconds until all objects are there."""
    names = iter([f"{OBJECT}-{number}" for number in range(options.count or OBJECTS)])

    async def worker() -> None:
        for name in names:
            with opened(options) as connection:
                await connection.connect()
                await connection.get(name)

    async def work() -> Result:
        start = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(AT_A_TIME)))
        return {"page": time.monotonic() - start}

    return await beside_downloads(options, work, options.warm)


async def requests(options: argparse.Namespace) -> Result:
    """The time of each small request, in seconds."""
    names = iter([f"{SMALL}-{number}" for number in range(options.count or 100)])
    times: list[float] = []

    async def fresh() -> None:
        for name in names:
            start = time.monotonic()
            with opened(options) as connection:
                await connection.connect()
                await connection.get(name)
            times.append(time.monotonic() - start)

    async def kept() -> None:
        with opened(options) as connection:
            await connection.connect()
            await connection.get(f"{SMALL}-0")
            for name in names:
                start = time.monotonic()
                await connection.get(name)
                times.append(time.monotonic() - start)

    async def work() -> Result:
        await asyncio.gather(*((kept if options.kept else fresh)() for _ in range(options.workers)))
        return {"times": times}

    return await beside_downloads(options, work, options.warm)


async def streams(options: argparse.Namespace) -> Result:
    """Mbit/s of all after the first seconds, and of each, and all bytes that came."""
    downloads = Downloads(options, options.downloads)
    await downloads.start()
    await asyncio.sleep(options.warm)
    before, start = list(downloads.counts), time.monotonic()
    await asyncio.sleep(options.seconds)
    seconds = time.monotonic() - start
    each = [(now - then) * 8 / seconds / 1e6 for now, then in zip(downloads.counts, before, strict=True)]
    await downloads.stop()
    return {"mbit": sum(each), "each": each, "bytes": sum(downloads.counts)}


async def silence(options: argparse.Namespace) -> Result:
    """The longest time in which nothing came after "flowing" was said, and what became of the download if it ended.

    It is done after `seconds`, or after the first silence of `notable` seconds, which then has to come.
    """
    downloads = Downloads(options, 1)
    await downloads.start()
    await asyncio.sleep(options.warm)
    print("flowing", flush=True)
    downloads.measure_silence()
    deadline = time.monotonic() + options.seconds
    try:
        while not options.notable or downloads.silence < options.notable:
            if time.monotonic() > deadline:
                if options.notable or downloads.silent_for() > STILL:
                    raise WrongAnswer(f"nothing came any more within {options.seconds:.0f} s")
                break
            await asyncio.sleep(0.02)
            downloads.check()
    except (WrongAnswer, OSError) as error:
        return {"silence": downloads.silence, "ended": str(error)}
    finally:
        await downloads.end()
    return {"silence": downloads.silence, "ended": ""}


async def late(options: argparse.Namespace) -> Result:
    """Seconds from when the server said its time until that was there, for each of `count` times."""
    times = []
    with opened(
        argparse.Namespace(**{**vars(options), "server": (options.server[0], CLOCK_PORT)})
    ) as connection:
        await connection.connect()
        for _ in range(options.count or 2):
            await connection.say(TIME.pack(options.pause))
            [sent] = TIME.unpack(await connection.exactly(TIME.size))
            times.append(time.monotonic() - sent)
    return {"times": times}


async def cold(options: argparse.Namespace) -> Result:
    """The moments at which the proxy's port was open and the answer there, of the clock that processes share."""
    print("waiting", flush=True)
    deadline = time.monotonic() + PATIENCE
    while options.proxy:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", options.proxy)):
                break
        if time.monotonic() > deadline:
            raise WrongAnswer(f"nothing listens on port {options.proxy}")
        await asyncio.sleep(POLL)
    start = time.monotonic()
    with opened(options) as connection:
        await connection.connect()
        await connection.get(f"{SMALL}-0")
    return {"opened": start, "answered": time.monotonic()}


TESTS: dict[str, Callable[[argparse.Namespace], Awaitable[Result]]] = {
    "page": page,
    "requests": requests,
    "streams": streams,
    "silence": silence,
    "late": late,
    "cold": cold,
}


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("test", choices=TESTS)
    parser.add_argument("--proxy", type=int, default=0, help="SOCKS5 port on this host, 0 for none")
    parser.add_argument("--server", type=address, default="93.184.20.10:80", metavar="ADDRESS:PORT")
    parser.add_argument("--downloads", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="of objects or requests")
    parser.add_argument("--workers", type=int, default=4, help="requests at a time (%(default)s)")
    parser.add_argument("--kept", action="store_true", help="requests on connections that are kept alive")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a download (%(default)s)")
    parser.add_argument("--notable", type=float, default=0.0, help="seconds of silence to wait for")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before the server says its time")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds of it before that (%(default)s)")
    parser.add_argument("--limit", type=float, default=100.0, help="seconds for the test (%(default)s)")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    wall, cpu = time.monotonic(), time.process_time()
    try:
        result = asyncio.run(asyncio.wait_for(TESTS[options.test](options), options.limit))
    except TimeoutError:
        print(f"not done within {options.limit:.0f} s", file=sys.stderr)
        return 1
    except (WrongAnswer, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    times = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps({**result, **times}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
