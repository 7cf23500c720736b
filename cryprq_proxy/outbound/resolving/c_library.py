"""Look-ups by the C library on threads: the host's own order of files, DNS, mDNS, LDAP and others (nsswitch.conf(5)).

getaddrinfo cannot be cancelled, so a thread is in use until it returns.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ...base.descriptors import EXHAUSTED
from ...errors import StreamReason
from .fair_slots import FairSlots
from .outcome import FoundAddresses, LookupResult

THREADS: Final = 64
WAITING_EACH: Final = 1024
WAITING: Final = 8192
"""Names that may wait for a thread, of one asker and of all."""
KEPT_SECONDS: Final = 30.0
"""How long addresses are kept: the C library tells no TTL."""

RESOLVE_REASONS: Final[dict[int, StreamReason]] = {
    socket.EAI_NONAME: StreamReason.NAME_NOT_FOUND,
    socket.EAI_NODATA: StreamReason.NAME_NOT_FOUND,
    socket.EAI_ADDRFAMILY: StreamReason.NAME_NOT_FOUND,
    socket.EAI_MEMORY: StreamReason.EXHAUSTED,
}
"""All other errors mean a time-out or a server's failure, which the C library does not tell apart: NAME_FAILED."""


def look_up(name: str) -> LookupResult:
    """Ask the C library; blocks. The addresses are in the order of RFC 6724."""
    if "\0" in name:  # of bytes, getaddrinfo would ask for what stands before it
        return StreamReason.NAME_NOT_FOUND
    try:
        # As bytes: the idna codec would convert a str, but the name has A-labels already.
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return RESOLVE_REASONS.get(error.errno or 0, StreamReason.NAME_FAILED)
    except OSError as error:
        return StreamReason.EXHAUSTED if error.errno in EXHAUSTED else StreamReason.NAME_FAILED
    except ValueError:  # not ASCII
        return StreamReason.NAME_NOT_FOUND
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    return FoundAddresses(addresses, KEPT_SECONDS) if addresses else StreamReason.NAME_NOT_FOUND


class LibraryNames:
    """The NameSource that asks the C library, `threads` names at once. `call` runs on a thread."""

    cancellable = False

    def __init__(self, *, threads: int = THREADS, call: Callable[[str], LookupResult] = look_up) -> None:
        self.slots = FairSlots(threads, waiting_each=WAITING_EACH, waiting=WAITING)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resolver")
        self._call = call

    async def look_up(self, name: str) -> LookupResult:
        """See NameSource."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, name)

    def close(self) -> None:
        """See NameSource."""
        self.slots.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
