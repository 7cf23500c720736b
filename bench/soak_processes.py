"""The processes of bench/soak.py: roles of the program that tell what they hold, and a crowd of clients.

    python bench/soak_processes.py role SETTING ARGUMENT...     `cryprq-proxy ARGUMENT...`
    python bench/soak_processes.py crowd SETTING                clients until SIGTERM, or until they are killed

A role is the program itself, with two additions. SIGUSR1 lets it write a `Census` to a file. And it takes the names of
hosts from files and a DNS server of the bench instead of this machine's. A process ends with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from commandline import BenchError
from msgspec import Struct

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ONE_PAGE: Final = 4_096
F_SETPIPE_SZ: Final = 1031

PR_SET_PDEATHSIG: Final = 1
MOST_TOLD: Final = 25


class Census(Struct, frozen=True):
    """What a role holds: tasks and timers of its loop, live blocks of Python's allocator, and live KiB of the C
    library's. With `traced` also, since the census before, the types and the places in the code of which there is
    more."""

    tasks: int
    timers: int
    blocks: int
    malloc_kib: int
    types: dict[str, int] = {}
    places: tuple[str, ...] = ()


class RoleSetting(Struct, frozen=True):
    """`census` is the file. `hosts` is a directory with hosts, resolv.conf and nsswitch.conf; `dns_port` is that of the
    server in its resolv.conf."""

    census: str
    hosts: str
    dns_port: int
    traced: bool = False


class CrowdSetting(Struct, frozen=True):
    """`keys` are the files of the clients' identities, and each uses the echo server at `target`."""

    exit: str
    port: int
    target: int
    keys: tuple[str, ...]


def main(kind: str, setting: str, *arguments: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    text = Path(setting).read_bytes()
    if kind == "crowd":
        asyncio.run(crowd(msgspec.json.decode(text, type=CrowdSetting)))
    else:
        role(msgspec.json.decode(text, type=RoleSetting), arguments)


# --- a role ---


def role(setting: RoleSetting, arguments: tuple[str, ...]) -> None:
    from cryprq_proxy.cli import main as program
    from cryprq_proxy.outbound.resolving.dns_names import SLOTS, DnsNames
    from cryprq_proxy.outbound.resolving.host_configuration import ConfigurationReader, HostFiles

    if setting.traced:
        tracemalloc.start()
    here = Path(setting.hosts)
    files = HostFiles(here / "resolv.conf", here / "hosts", here / "nsswitch.conf")
    # Both have this machine's own by default, and the program does not say otherwise.
    ConfigurationReader.__init__.__defaults__ = (files,)
    DnsNames.__init__.__kwdefaults__ = {"slots": SLOTS, "port": setting.dns_port}
    teller = CensusTeller(setting)
    signal.signal(signal.SIGUSR1, lambda *_: teller.tell())
    sys.argv = ["cryprq-proxy", *arguments]
    program()


class CensusTeller:
    """Writes a census each time it is asked."""

    def __init__(self, setting: RoleSetting) -> None:
        self._setting = setting
        self._types: Counter[str] = Counter()
        self._snapshot: tracemalloc.Snapshot | None = None

    def tell(self) -> None:
        loop = asyncio.get_running_loop()
        types: dict[str, int] = {}
        places: tuple[str, ...] = ()
        # Else what is in use rises by up to 0.5 MiB in a cycle, until the collector comes by itself.
        gc.collect()
        if self._setting.traced:
            types, places = self._more_types(), self._more_places()
        census = Census(
            len(asyncio.all_tasks(loop)),
            sum(not timer.cancelled() for timer in getattr(loop, "_scheduled", ())),
            sys.getallocatedblocks(),
            malloc_bytes() >> 10,
            types,
            places,
        )
        file = Path(self._setting.census)
        beside = file.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(census))
        beside.replace(file)

    def _more_types(self) -> dict[str, int]:
        now = Counter(type(each).__qualname__ for each in gc.get_objects())
        before, self._types = self._types, now
        return dict((now - before).most_common(MOST_TOLD)) if before else {}

    def _more_places(self) -> tuple[str, ...]:
        now = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
        before, self._snapshot = self._snapshot, now
        if before is None:
            return ()
        return tuple(map(str, now.compare_to(before, "lineno")[:MOST_TOLD]))


class MallInfo(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3))."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def malloc_bytes() -> int:
    """Bytes in use, in the heap and beside it; 0 where the C library does not tell."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return 0
    library.mallinfo2.restype = MallInfo
    info = library.mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


# --- a crowd ---


async def crowd(setting: CrowdSetting) -> None:
    """Bring all links up, use each, say so, and wait for the end."""
    from cryprq_proxy.address import Destination
    from cryprq_proxy.base.tasks import spawn
    from cryprq_proxy.carriers.dial.endpoint import Endpoint
    from cryprq_proxy.client.client import Client
    from cryprq_proxy.config.keys import load_identity
    from cryprq_proxy.crypto.identity import PeerId
    from cryprq_proxy.crypto.primitives import select_provider
    from tests.support.settings import client_settings

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    provider = select_provider()
    endpoint = Endpoint("tcp", Destination("127.0.0.1", setting.port))
    clients = [
        Client(
            load_identity(provider, Path(key)),
            client_settings(PeerId.parse(setting.exit), (endpoint,)),
            provider,
        )
        for key in setting.keys
    ]
    links = [spawn(client.run(), "link") for client in clients]
    streams = await asyncio.gather(
        *(client.open(Destination("127.0.0.1", setting.target)) for client in clients)
    )
    for stream in streams:
        await stream.write(b"hello")
        await stream.read()
    os.write(1, b"in\n")
    await ended.wait()
    for stream in streams[::2]:
        stream.abort()
    for client in clients:
        await client.stop()
    await asyncio.gather(*links)


# --- what the bench knows of a role ---


class Sample(NamedTuple):
    """`kib` is memory that would be free again without the process (smaps_rollup): what is in use, and what the
    allocators keep of the highest that ever was. `blocks` and `malloc_kib` are what is in use."""

    kib: int
    blocks: int
    malloc_kib: int
    descriptors: int
    threads: int
    tasks: int
    timers: int


class SoakedProcess:
    """A role in a process of its own, with its log in a pipe of one page, and all its files in `directory`."""

    def __init__(
        self,
        name: str,
        port: int,
        directory: Path,
        environment: Mapping[str, str],
        dns_port: int,
        traced: bool = False,
    ) -> None:
        self.name, self.port = name, port
        self.control = directory / f"{name}.sock"
        self._census = directory / f"{name}.census"
        setting = directory / f"{name}.json"
        setting.write_bytes(
            msgspec.json.encode(RoleSetting(str(self._census), str(directory), dns_port, traced))
        )
        source, sink = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(sink, F_SETPIPE_SZ, ONE_PAGE)
        role = ["exit"] if name == "exit" else []
        arguments = [*role, "--config", str(directory / f"{name}.toml")]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "bench/soak_processes.py"), "role", str(setting), *arguments],
            stdin=subprocess.DEVNULL,
            stderr=sink,
            cwd=directory,
            env=environment,
        )
        os.close(sink)
        self.pid = self.process.pid
        self.wrong: list[str] = []
        self._last = ""
        self._reading = threading.Event()
        self._reading.set()
        threading.Thread(target=self._read_log, args=(source,), daemon=True).start()

    def _read_log(self, source: int) -> None:
        with open(source, errors="replace") as log:
            for line in log:
                self._last = line.rstrip()
                if "Traceback" in line or "this is a bug" in line:
                    self.wrong.append(line.rstrip())
                self._reading.wait()

    @contextlib.contextmanager
    def reader_stopped(self) -> Iterator[None]:
        """Nobody reads the log meanwhile."""
        self._reading.clear()
        try:
            yield
        finally:
            self._reading.set()

    def status(self) -> Mapping[str, Any]:
        """Empty if it does not answer."""
        from cryprq_proxy.errors import CryprqError
        from cryprq_proxy.process.control import query

        if self.process.poll() is not None:
            raise BenchError(f"{self.name} ended with {self.process.returncode}: {self._last}")
        with contextlib.suppress(CryprqError):
            return query(self.control)
        return {}

    def census(self) -> Census:
        self._census.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        until(self._census.exists, f"{self.name} tells what it holds")
        return msgspec.json.decode(self._census.read_bytes(), type=Census)

    def sample(self) -> tuple[Sample, Census]:
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        kib = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        descriptors = len(os.listdir(f"/proc/{self.pid}/fd"))
        threads = len(os.listdir(f"/proc/{self.pid}/task"))
        census = self.census()
        live = (census.blocks, census.malloc_kib)
        return Sample(kib, *live, descriptors, threads, census.tasks, census.timers), census

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.wrong.append("did not end on SIGTERM")
            self.process.kill()
            self.process.wait()


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Raises BenchError if `condition` does not come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
