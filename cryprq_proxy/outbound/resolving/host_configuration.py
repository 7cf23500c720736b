"""What the host's files say about names: resolv.conf(5), hosts(5), nsswitch.conf(5).

A file is read again when it has changed, on a thread: the event loop only asks for its marks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ...base.descriptors import EXHAUSTED
from ...base.file_access import OWN, Mark
from ...base.resolv_conf import lines, nameservers
from ...base.tasks import spawn
from ...errors import reason_of
from .hosts_file import read_hosts

_log = logging.getLogger(__name__)

MAX_SERVERS: Final = 3
"""The C library uses no more."""
MAX_SEARCH: Final = 8
"""Domains of the search list that are used."""
MAX_FILE: Final = 1 << 20
"""Bytes of a file that are read. A longer hosts file is left to the C library."""
MOST_SECONDS: Final = 30
MOST_ATTEMPTS: Final = 5
MOST_DOTS: Final = 15
"""Bounds of the C library on `timeout`, `attempts` and `ndots`."""
LIBRARY_VARIABLES: Final = ("HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS")
"""Environment variables that only the C library heeds."""


class HostFiles(NamedTuple):
    resolv_conf: Path = Path("/etc/resolv.conf")
    hosts: Path = Path("/etc/hosts")
    nsswitch: Path = Path("/etc/nsswitch.conf")


HOST_FILES: Final = HostFiles()


class HostConfiguration(NamedTuple):
    """`seconds` is the time for one question to one server. `library` says why names are left to the C library: a part
    of a sentence, empty if they are not."""

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    dots: int = 1
    seconds: float = 5.0
    attempts: int = 2
    rotate: bool = False
    only_tcp: bool = False
    hosts: Mapping[str, tuple[str, ...]] = {}
    library: str = ""


def described(configuration: HostConfiguration) -> str:
    """What answers for names, as a part of a sentence."""
    if configuration.library:
        return f"the C library, since {configuration.library}"
    return f"DNS, from {', '.join(configuration.servers)}"


type Marks = tuple[Mark, ...]
"""The state of each file."""


class ConfigurationReader:
    """The configuration as the files have it. The first reading blocks: make it when the program starts."""

    def __init__(self, files: HostFiles = HOST_FILES) -> None:
        self._files = files
        self._marks = marks_of(files)
        self.latest = read_configuration(files)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="host's files")
        self._reading: asyncio.Task[HostConfiguration] | None = None

    async def current(self) -> HostConfiguration:
        """The configuration, read again if a file has changed since the last call."""
        if self._reading is None:
            # Taken before the reading: a change during it is seen the next time.
            marks = marks_of(self._files)
            if marks == self._marks:
                return self.latest
            self._reading = spawn(self._read(marks), "host's files")
        return await asyncio.shield(self._reading)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _read(self, marks: Marks) -> HostConfiguration:
        try:
            read = partial(read_configuration, self._files)
            self.latest = await asyncio.get_running_loop().run_in_executor(self._thread, read)
            self._marks = marks
        except OSError as error:
            # The next one who asks tries again.
            _log.debug("the host's files cannot be read: %s", reason_of(error))
        finally:
            self._reading = None
        return self.latest


def marks_of(files: HostFiles) -> Marks:
    return tuple(map(OWN.mark, files))


def read_configuration(
    files: HostFiles = HOST_FILES, hostname: Callable[[], str] = socket.gethostname
) -> HostConfiguration:
    """Blocks. A file that is missing or may not be read counts as empty.

    Raises OSError if this machine has no descriptor or memory for it: that says nothing about the file.
    """
    content = _content(files.resolv_conf)
    hosts = _content(files.hosts, MAX_FILE + 1)
    library = why_library(_content(files.nsswitch), os.environ)
    if not library and len(hosts) > MAX_FILE:
        library = f"{files.hosts} is larger than {MAX_FILE >> 20} MiB"
    found = read_resolv_conf(content, hostname())
    return found._replace(hosts={} if library else read_hosts(hosts), library=library)


def _content(path: Path, most: int = MAX_FILE) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        return b""


def read_resolv_conf(content: bytes, hostname: str = "") -> HostConfiguration:
    """Servers, search list and options; the domain of `hostname` is the search list if the file has none."""
    domain = hostname.partition(".")[2]
    search = [domain] if domain else []
    options: dict[str, str] = {}
    for keyword, *words in lines(content):
        if keyword in ("domain", "search"):
            search = words[:1] if keyword == "domain" else words
        elif keyword == "options":
            options |= {name: value for name, _, value in (word.partition(":") for word in words)}
    defaults = HostConfiguration()
    return HostConfiguration(
        servers=nameservers(content)[:MAX_SERVERS] or defaults.servers,
        search=tuple(name for word in search if (name := word.strip(".").lower()))[:MAX_SEARCH],
        dots=_number(options, "ndots", defaults.dots, 0, MOST_DOTS),
        seconds=_number(options, "timeout", int(defaults.seconds), 1, MOST_SECONDS),
        attempts=_number(options, "attempts", defaults.attempts, 1, MOST_ATTEMPTS),
        rotate="rotate" in options,
        only_tcp="use-vc" in options,
    )


def _number(options: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    value = options.get(name, "")
    return min(max(int(value[:9]), least), most) if value.isascii() and value.isdigit() else default


def why_library(nsswitch: bytes, environment: Mapping[str, str], platform: str = sys.platform) -> str:
    """Why only the C library can look up names as this host wants it; empty if files and DNS are all."""
    if platform != "linux":
        return "this system resolves names in its own order"
    for variable in LIBRARY_VARIABLES:
        if variable in environment:
            return f"the environment has {variable}"
    sources = ["files", "dns"]
    for keyword, *words in lines(nsswitch.replace(b"hosts:", b"hosts: ")):
        if keyword == "hosts:":
            sources = words[: words.index("#")] if "#" in words else words
    if sources == ["files", "dns"]:
        return ""
    return f"nsswitch.conf says `hosts: {' '.join(sources)[:80]}`"
