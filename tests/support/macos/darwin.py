"""Lets this process take its Linux for macOS, as far as Python shows one.

    names       those that CPython has on Linux alone are gone from its modules; some that macOS alone has are there
    sockets     see sockets.py; kqueue(2) in place of epoll(7)
    C library   without the functions of Linux
    files       nothing is below /proc, /sys and /run, nor can it be made there
    modules     tun.linux, pyroute2 and dbus_fast cannot be imported

What remains Linux's is named in docs/macos.md: the kernel below. Modules of the standard library are loaded before, and
keep what they have chosen.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import ctypes.util
import errno
import getpass
import http.client
import importlib
import importlib.abc
import logging.handlers
import multiprocessing
import os
import platform
import resource
import select
import selectors
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from tests.support.macos import kqueue, sockets
from tests.support.macos.names import MODULES, removed

_LOADED: Final = (
    asyncio,
    concurrent.futures,
    ctypes.util,
    getpass,
    http.client,
    logging.handlers,
    multiprocessing,
    platform,
    shutil,
    ssl,
    subprocess,
    tempfile,
    urllib.request,
    uuid,
)
_ABSENT: Final = ("/proc", "/sys", "/run")
_OPENS: Final = frozenset({"open", "os.listdir", "os.scandir", "os.mkdir"})
_FUNCTIONS: Final = frozenset(
    {
        "prctl",
        "recvmmsg",
        "sendmmsg",
        "adjtimex",
        "unshare",
        "setns",
        "accept4",
        "inotify_init1",
        "epoll_create1",
    }
)
_OPEN_MAX: Final = 10_240
_FOREIGN: Final = ("tun.linux", "pyroute2", "dbus_fast")


class _NoForeign(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(name == foreign or name.startswith(f"{foreign}.") for foreign in _FOREIGN):
            sockets.complain(f"{name} is imported")
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def become_darwin() -> None:
    """There is no return."""
    sys.meta_path.insert(0, _NoForeign())
    # The one of asyncio has a descriptor of its own, as on macOS.
    setattr(selectors, "KqueueSelector", selectors.DefaultSelector)  # noqa: B010
    selectors.select = SimpleNamespace(**vars(select))  # type: ignore[attr-defined]
    sockets.install()
    for module in map(importlib.import_module, MODULES):
        for name in removed(module.__name__) & vars(module).keys():
            delattr(module, name)
    for name in ("kqueue", "kevent", "KQ_FILTER_READ", "KQ_FILTER_WRITE", "KQ_EV_ADD", "KQ_EV_DELETE"):
        setattr(select, name, getattr(kqueue, name))
    time.CLOCK_UPTIME_RAW = time.CLOCK_MONOTONIC  # type: ignore[attr-defined]
    _hide_files()
    _hide_functions()
    _bound_files()
    uname = os.uname()
    told = os.uname_result(("Darwin", uname.nodename, "24.0.0", "Darwin Kernel Version 24.0.0", "arm64"))
    os.uname = lambda: told
    sys.platform = "darwin"


def is_absent(path: object) -> bool:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    text = os.fsdecode(path)
    return any(text == absent or text.startswith(f"{absent}/") for absent in _ABSENT)


def _hide_files() -> None:
    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPENS and arguments and is_absent(arguments[0]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(arguments[0]))

    sys.addaudithook(look)
    for name in ("stat", "lstat", "access", "readlink", "chmod", "unlink"):
        setattr(os, name, _hidden(getattr(os, name), no=False if name == "access" else None))


def _hidden(call: Any, no: object) -> Any:
    def hidden(path: Any, *arguments: Any, **options: Any) -> Any:
        if is_absent(path):
            if no is not None:
                return no
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        return call(path, *arguments, **options)

    return hidden


def _bound_files() -> None:
    """setrlimit(2): no more than OPEN_MAX descriptors may be asked for."""
    set_limit = resource.setrlimit

    def checked(kind: int, limits: tuple[int, int]) -> None:
        if kind == resource.RLIMIT_NOFILE and not 0 <= limits[0] <= _OPEN_MAX:
            raise ValueError("current limit exceeds maximum limit")
        set_limit(kind, limits)

    resource.setrlimit = checked


def _hide_functions() -> None:
    known = ctypes.CDLL.__getattr__

    def find(library: ctypes.CDLL, name: str) -> Any:
        if name in _FUNCTIONS:
            raise AttributeError(f"dlsym: symbol not found: {name}")
        return known(library, name)

    ctypes.CDLL.__getattr__ = find  # type: ignore[method-assign]
