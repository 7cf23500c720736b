"""What a killed system-wide mode has left on this machine, and whether one lives: for every user, without root.

    marks of a client   routing rules with our protocol number      any user can read them
                        the header of /etc/resolv.conf              any user
                        the table of the packet filter              root only
    lockdown            an empty table of the packet filter         root; all others see its unit
    marks of an exit    routes with its protocol number             any user
                        the table of the packet filter              root only
    sign of life        an abstract socket of the role's process    any user

A kill leaves the marks, and ends the socket. An abstract socket (unix(7)) belongs to a network namespace, as rules and
filter do, and needs no directory: so a role is found whatever its state directory is. Any user can bind such a name,
so only a socket of root counts.

It reads netlink (rtnetlink(7)): a dump takes well under a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Literal

from ..errors import ConfigError
from .accept_loop import Acceptor
from .netlink import DUMP, NETFILTER, NetlinkSocket, attributes
from .paths import ROLES, Role
from .program import to_run_as_root
from .systemd import UNIT_DIRECTORY

RULE_PROTOCOL: Final = 0x72
"""FRA_PROTOCOL and rtm_protocol of all that a client sets; not registered (iproute2, rt_protos)."""
EXIT_PROTOCOL: Final = 0x73
"""rtm_protocol of an exit's routes: both roles may run on one machine."""
RESOLV_CONF: Final = "/etc/resolv.conf"
RESOLV_CONF_HEADER: Final = "# cryprq-proxy "
"""The first line of our resolv.conf begins so."""
TABLES: Final[dict[Role, str]] = {"client": "cryprq", "exit": "cryprq_exit"}
"""Our tables of the packet filter, of family inet."""
LOCKDOWN: Final = "cryprq_lockdown"
"""One more, empty: it stands from `lockdown on` to `lockdown off`."""
LOCKDOWN_UNIT: Final = "cryprq-lockdown.service"
LOCKDOWN_WANTED: Final = UNIT_DIRECTORY / "sysinit.target.wants" / LOCKDOWN_UNIT
"""Stands while the unit is enabled; every user can see it."""
LOCKDOWN_LIFTS: Final = to_run_as_root("lockdown off")
LOCKDOWN_STANDS: Final = (
    f"lockdown is on, so nothing gets out until --tun runs: start it, or lift the block: {LOCKDOWN_LIFTS}"
)
LOCKDOWN_LOST: Final = (
    "lockdown is on, but another program has removed its filter; to put it back: "
    + to_run_as_root("lockdown on")
)
REMEDY: Final = f"start it again, or {to_run_as_root('cleanup')}"
KILL_SWITCH_STANDS: Final = f"the kill switch of an earlier --tun stands: {REMEDY}"

_FILTER: Final = {role: f"the table {table} of the packet filter" for role, table in TABLES.items()}
_RULES: Final = "routing rules"
_ROUTES: Final = "routes to clients"
_RULES_ALONE_SEEN: Final = "routing rules (and a packet filter, as far as can be told without root)"
CLEANUP_SECONDS: Final = 10.0
"""How long a start waits for a cleanup, which takes well under a second."""
type _Name = Role | Literal["cleanup"]
_CLEANUP: Final = "cleanup"
_POLL: Final = 0.02
_PEER: Final = struct.Struct("=iII")
_GET_RULES: Final = 34  # RTM_GETRULE
_RULE_HEADER: Final = 12  # struct fib_rule_hdr
_FRA_PROTOCOL: Final = 21
_GET_ROUTES: Final = 26  # RTM_GETROUTE
_ROUTE_HEADER: Final = 12  # struct rtmsg
_ROUTE_PROTOCOL: Final = 5
"""Where rtm_protocol is in it."""
_GET_TABLES: Final = 0x0A01  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME
_NFPROTO_INET: Final = 1


# --- the sign of life ---


@contextlib.contextmanager
def claimed(role: Role) -> Iterator[None]:
    """Be the one `role` in system-wide mode of this network namespace.

    Waits for a cleanup that runs, at most CLEANUP_SECONDS. Raises ConfigError if there is another one.
    """
    with _sign_of(role) as sign, _answering(sign):
        yield


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Be the one cleanup of this network namespace, where neither role lives. Waits and raises as `claimed`."""
    with contextlib.ExitStack() as signs:
        signs.enter_context(_sign_of(_CLEANUP))
        for role in ROLES:
            signs.enter_context(_sign_of(role))
        yield


@contextlib.contextmanager
def _sign_of(name: _Name) -> Iterator[socket.socket]:
    give_up = time.monotonic() + CLEANUP_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sign:
        while not _bound(sign, name):
            pid = holder(name)
            if pid is not None and pid == holder(_CLEANUP):
                if time.monotonic() >= give_up:
                    raise ConfigError(
                        f"cryprq-proxy cleanup (pid {pid}) still runs: try again when it has ended"
                    )
                time.sleep(_POLL)
                continue
            # The other one may have ended just now.
            if _bound(sign, name):
                break
            if pid is not None:
                raise ConfigError(in_use(pid))
            # A user without rights has the name. That must not keep this process from its work.
            break
        yield sign


def _bound(sign: socket.socket, name: str) -> bool:
    try:
        sign.bind(_name(name))
        sign.listen()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _answering(sign: socket.socket) -> Iterator[None]:
    """Take those who look for the sign out of its queue, where a loop runs; else the queue is long enough."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        yield
        return

    if not sign.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        # Another user has the name. The loop would call for this socket without end.
        yield
        return
    acceptor = Acceptor(loop, sign, lambda caller, _: caller.close())
    acceptor.start()
    try:
        yield
    finally:
        acceptor.close()


def in_use(pid: int | None) -> str:
    """What to say to a second one."""
    known = f" (pid {pid})" if pid else ""
    return f"another cryprq-proxy runs in system-wide mode{known}: stop that one first"


def holder(role: _Name) -> int | None:
    """The process id of the `role` that lives here in system-wide mode, or of the cleanup.

    0 if it is of another PID namespace, None if there is none.
    """
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            # A connection that waits in the queue is enough.
            probe.connect(_name(role))
            pid, uid, _ = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    except OSError:
        return None
    return pid if uid in (0, os.geteuid()) else None


def _name(name: str) -> str:
    return f"\0cryprq-proxy-tun-{name}"


# --- the marks ---


def left_by_client() -> str:
    """What to say where a client that was killed has left something; empty where none has."""
    left = marks("client")
    if lockdown() and holder("client") is None:
        return "; ".join(filter(None, (said_of_lockdown(), has_left(left) if left else "")))
    return KILL_SWITCH_STANDS if kill_switch_in(left) else has_left(left) if left else ""


def said_of_lockdown() -> str:
    """What to say while lockdown is on and no client lives."""
    return LOCKDOWN_LOST if table_stands("client") is False else LOCKDOWN_STANDS


def left_by_any() -> str:
    """What to say where either role has left something; empty where none has."""
    left = marks("exit")
    return "; ".join(filter(None, (left_by_client(), has_left(left) if left else "")))


def has_left(what: Iterable[str]) -> str:
    """What to say where no kill switch stands, but something else is left."""
    return f"an earlier --tun has left {', '.join(what)}: {REMEDY}"


def kill_switch_in(left: Collection[str]) -> bool:
    """Whether what `marks` has found holds this machine's traffic in, as far as this user can see."""
    return _FILTER["client"] in left or _RULES_ALONE_SEEN in left


def marks(role: Role) -> tuple[str, ...]:
    """What a `role` that no longer lives has left, as far as this user can see, in words; empty if one lives."""
    if sys.platform != "linux" or holder(role) is not None:
        return ()
    tables = _tables()
    found = [_FILTER[role]] if tables is not None and TABLES[role] in tables else []
    if role == "client" and lockdown():
        # That it stands is as it should be.
        found.clear()
    if role == "client":
        rules = _RULES_ALONE_SEEN if tables is None and not lockdown() else _RULES
        found += [rules] if _has_rules() else []
        found += [RESOLV_CONF] if has_header() else []
    elif _has_routes():
        found.append(_ROUTES)
    return tuple(found)


def table_stands(role: Role) -> bool | None:
    """Whether the table of `role` is in the packet filter; None for a user who may not list it.

    Blocks for well under a millisecond: nft takes longer.
    """
    tables = _tables()
    return None if tables is None else TABLES[role] in tables


def lockdown() -> bool:
    """Whether `lockdown on` is in force in this network namespace, as far as this user can see."""
    tables = _tables()
    return LOCKDOWN in tables if tables is not None else os.path.lexists(LOCKDOWN_WANTED)


def _has_rules() -> bool:
    with contextlib.suppress(OSError), NetlinkSocket(socket.NETLINK_ROUTE) as kernel:
        request = bytes(_RULE_HEADER)  # of all families
        return any(
            attributes(body[_RULE_HEADER:]).get(_FRA_PROTOCOL) == bytes([RULE_PROTOCOL])
            for _, body in kernel.ask(_GET_RULES, DUMP, request)
        )
    return False


def _has_routes() -> bool:
    with contextlib.suppress(OSError), NetlinkSocket(socket.NETLINK_ROUTE) as kernel:
        request = bytes(_ROUTE_HEADER)  # of all families
        return any(
            len(body) >= _ROUTE_HEADER and body[_ROUTE_PROTOCOL] == EXIT_PROTOCOL
            for _, body in kernel.ask(_GET_ROUTES, DUMP, request)
        )
    return False


def _tables() -> set[str] | None:
    """The tables of family inet; None for a user who may not list them."""
    with contextlib.suppress(OSError), NetlinkSocket(NETFILTER) as kernel:
        request = bytes([_NFPROTO_INET, 0, 0, 0])
        names = [
            attributes(body[len(request) :]).get(_TABLE_NAME, b"")
            for _, body in kernel.ask(_GET_TABLES, DUMP, request)
        ]
        return {name.rstrip(b"\0").decode("ascii", "replace") for name in names}
    return None


def has_header() -> bool:
    """Whether our resolv.conf stands."""
    mark = RESOLV_CONF_HEADER.encode()
    try:
        # A pipe at this path must not block.
        with open(os.open(RESOLV_CONF, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False
