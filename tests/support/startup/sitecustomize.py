"""Runs first in every process that these tests start (it stands in PYTHONPATH).

The process dies with its parent, so that nothing is left over however a test run ends. And it knows only the names in
E2E_HOSTS ("site.test=127.0.0.1 six.test=::1"): the network is never asked, and a client, which has none, shows with
an error in its log if it resolves what it should leave to the exit.
"""

import ctypes
import os
import signal
import socket
import sys
from typing import Any

PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

_hosts = dict(entry.split("=") for entry in os.environ.get("E2E_HOSTS", "").split())
_system = socket.getaddrinfo


def _is_literal(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def getaddrinfo(host: str | bytes | None, port: str | int | None, *args: Any, **options: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or _is_literal(name):
        return _system(host, port, *args, **options)
    if not _hosts:
        print(f"00:00:00 error   the name {name} was resolved here", file=sys.stderr, flush=True)
    if name not in _hosts:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _system(_hosts[name], port, *args, **options)


# With this variable an exit leaves all names to getaddrinfo (outbound/resolving/host_configuration.py).
os.environ["RES_OPTIONS"] = "attempts:1"
socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]
