"""Packet filter tables of our own, through the program `nft`.

A change is a script, and a script is one transaction in the kernel: all of it stands afterwards, or nothing of it.
There is no packet in between that sees half of it. The program touches two tables only, both of family `inet`:
CLIENT (the kill switch, kill_switch.py) and EXIT (forwarding and NAT, exit_table.py). Each is replaced as a whole, so
nothing of an older version stays behind. They are not bound to the process: whatever happens to it, they stay.

Everything here blocks for the few milliseconds that `nft` takes; it works on the network namespace of the calling
thread.

What is written into a script comes through `name`, `prefixes` and numbers, never as text from outside.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from cryprq_proxy.base import leftovers, linux_marks
from cryprq_proxy.base.forwarder_port import FORWARDER_PORT
from cryprq_proxy.base.program import to_run
from cryprq_proxy.errors import ConfigError

from ...device.names import checked_name
from ...journal import Entry, Record, Undoer
from ...system import Count, FilterError
from ..sysctl import lost_settings
from . import conntrack
from .conntrack import EndedWithTable
from .tunnel_sockets import end_tunnel_sockets

_log = logging.getLogger(__name__)

CLIENT: Final = linux_marks.TABLES["client"]
EXIT: Final = linux_marks.TABLES["exit"]
TABLES: Final = frozenset({CLIENT, EXIT})
KIND: Final = "nft_table"
"""Of this module's entries in the journal; the other field is `table`, one of TABLES."""

LIMIT: Final = 15.0
"""Seconds that one call of nft may take."""
SBIN: Final = ("/usr/sbin", "/sbin", "/usr/local/sbin")
"""Often missing in the PATH of sudo and of services."""

type Listed = list[dict[str, Any]]
"""What `nft -j` lists: each item has one key, which says its kind."""
type Ask = Callable[..., Listed | None]
type Run = Callable[[str], None]


class NftError(FilterError):
    """nft is missing, not permitted, not supported or refused the script; nothing was changed."""


class UnreadableAnswer(NftError):
    """What nft lists is not JSON: some versions print a table with flags so. Whoever compares takes it for a change."""


def name(device: str) -> str:
    """A network device's name as nft wants it, quoted. Raises ConfigError if it cannot be the name of a device."""
    return f'"{checked_name(device)}"'


def set_of(title: str, kind: str, flags: str, elements: Iterable[str]) -> list[str]:
    """The lines that declare a set; an empty one has no `elements` line."""
    lines = [f"set {title} {{", f"    type {kind}"]
    if flags:
        lines.append(f"    flags {flags}")
    if listed := ", ".join(elements):
        lines.append(f"    elements = {{ {listed} }}")
    return [*lines, "}"]


def counters(titles: Iterable[str], before: Mapping[str, Count]) -> list[str]:
    """The lines that declare counters; those that are not in `before` begin at 0."""
    found = [(title, before.get(title, Count(0, 0))) for title in titles]
    return [f"counter {title} {{ packets {count.packets} bytes {count.bytes}; }}" for title, count in found]


def block(head: str, lines: Iterable[str]) -> list[str]:
    """`head { lines }`, indented."""
    return [f"{head} {{", *(f"    {line}" for line in lines), "}"]


CLAMP: Final = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
"""Lets a TCP connection know the MTU of its route."""
REFUSE_CHAIN: Final = "refuse"
"""Of both tables, and so a mark of them."""
REFUSE: Final = block(
    f"chain {REFUSE_CHAIN}", ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"]
)
"""A chain to go to: the sender's program fails at once."""


def replacing(table: str, lines: Iterable[str]) -> str:
    """The script that makes `table` anew whether it stood before or not: adding it first lets the delete succeed."""
    body = block(f"table inet {table}", lines)
    return "\n".join([f"add table inet {table}", f"delete table inet {table}", *body, ""])


def program() -> str:
    """Where nft is. Raises NftError."""
    found = shutil.which("nft") or shutil.which("nft", path=":".join(SBIN))
    if found is None:
        raise NftError(
            "the program nft was not found: install the package nftables to use the system-wide mode"
        )
    return found


def _call(arguments: list[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
    path = program()
    try:
        return subprocess.run(
            [path, *arguments],
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
            # nft translates the kernel's errors, and `_reason` reads them.
            env={"LC_ALL": "C", "PATH": ":".join(SBIN)},
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NftError(f"the program {path} could not be run: {error}") from error


def _reason(said: str) -> NftError:
    """One sentence about what nft wrote to its standard error."""
    if "Operation not permitted" in said or "must be root" in said:
        return NftError("the packet filter may not be changed: run this as root (it needs CAP_NET_ADMIN)")
    if "Unable to initialize Netlink socket" in said or "Protocol not supported" in said:
        return NftError(
            "this kernel has no nftables: use one with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
        )
    first = next((line for line in said.splitlines() if "rror" in line), said.strip() or "no reason given")
    told = first.partition("Error: ")[2] or first
    # What the kernel answers where the module of an expression (fib, nat, reject, ...) is not there.
    if "Could not process rule" in told and ("No such file" in told or "not supported" in told):
        return NftError(f"this kernel lacks a part of nftables that is needed here (nft says: {told})")
    return NftError(f"the packet filter was not changed because nft refused it: {told}")


def run(script: str) -> None:
    """Carries out `script` in one transaction. Raises NftError; then nothing was changed."""
    done = _call(["-f", "-"], script)
    if done.returncode:
        raise _reason(done.stderr)


def check(script: str) -> None:
    """Whether nft and the kernel take `script`, which is not carried out. Raises NftError."""
    done = _call(["-c", "-f", "-"], script)
    if done.returncode:
        raise _reason(done.stderr)


def ask(*command: str) -> Listed | None:
    """What `nft -j` lists, without its own header; None if the asked-for thing does not exist.

    Raises NftError, and UnreadableAnswer where the answer is none: nft 1.0.6 prints garbage for the flags of a table.
    """
    done = _call(["-j", *command])
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return None
        raise _reason(done.stderr)
    try:
        listed = json.loads(done.stdout)["nftables"]
        return [item for item in listed if "metainfo" not in item]
    except (ValueError, LookupError, TypeError) as error:
        raise UnreadableAnswer("the answer of nft cannot be read: update the package nftables") from error


def exists(table: str, ask: Ask = ask) -> bool:
    """Whether `inet table` stands. Raises NftError.

    A list of tables would have their flags, also those of other programs' tables.
    """
    return ask("list", "counters", "table", "inet", table) is not None


def is_left_over(table: str, ask: Ask = ask) -> bool:
    """Whether `inet table` stands and has our chains, whatever a journal says. Raises NftError."""
    return ask("list", "chain", "inet", table, REFUSE_CHAIN) is not None


def claim(table: str, ours: bool, record: Record, ask: Ask = ask) -> None:
    """Writes `table` to the journal before it is made. `ours`: the journal has it already, so it may be replaced, as
    may one that a run whose journal is gone has left.

    Raises ConfigError if another program's table has that name, and NftError.
    """
    if ours:
        return
    standing = refuse_foreign(table, ask)
    # The block of lockdown is put up without those settings.
    if standing and not leftovers.lockdown() and (left := lost_settings(table)):
        _log.warning("%s", left)
    record({"kind": KIND, "table": table})


def refuse_foreign(table: str, ask: Ask = ask) -> bool:
    """Whether `table` stands. Raises ConfigError where it is another program's, and NftError."""
    standing = exists(table, ask)
    if standing and not is_left_over(table, ask):
        raise ConfigError(
            f'the packet filter already has a table "inet {table}" that this program has not recorded: run '
            f'"{to_run("cleanup")}", or "nft delete table inet {table}" if it is left over'
        )
    return standing


def elements(ask: Ask, title: str) -> list[object]:
    """Those of a set of the client's table; none if there is no such set."""
    listed = ask("list", "set", "inet", CLIENT, title) or []
    return [element for item in listed if "set" in item for element in item["set"].get("elem", ())]


TUNNELS: Final = "tunnel"
"""With 4 or 6, the set of the tunnel address in the client's table: what the end must know of NAT."""


def tunnel_addresses(ask: Ask = ask) -> frozenset[IPv4Address | IPv6Address]:
    """Those of the client's table that stands, perhaps of a process that is gone."""
    return conntrack.addresses(text for version in (4, 6) for text in elements(ask, f"{TUNNELS}{version}"))


_ENDING: Final = f"""
flush chain inet {CLIENT} dns_in
flush chain inet {CLIENT} dns_out
insert rule inet {CLIENT} output oifname != "lo" meta l4proto {{ tcp, udp }} ct original proto-dst 53 drop
insert rule inet {CLIENT} forward meta l4proto {{ tcp, udp }} ct original proto-dst 53 drop
"""


def _forget(dns_port: int) -> None:
    """Before the client's table goes: redirect no more, refuse DNS, and delete the connections that only the table
    holds in. Otherwise NAT would send their next packets to addresses of the tunnel, in the clear."""
    tunnels = tunnel_addresses()
    try:
        run(_ENDING)
    except NftError as error:
        # A table of another version, which has other chains.
        _log.debug("the table is removed as it is: %s", error)
    conntrack.delete(EndedWithTable(tunnels=tunnels, dns_port=dns_port))
    end_tunnel_sockets(tunnels)


def remove(table: str, instead: str = "") -> None:
    """Deletes one of TABLES, whether it stands or not; the script `instead` takes its place in the same transaction.

    Raises NftError; then the table is still there.
    """
    if table not in TABLES:
        raise ConfigError(f"the journal names the packet filter table {table!r}, which is not this program's")
    if table == CLIENT and exists(CLIENT):
        _forget(FORWARDER_PORT)
    run(instead or f"add table inet {table}\ndelete table inet {table}\n")


def counts(listed: Iterable[Mapping[str, Any]]) -> dict[str, Count]:
    """The counters among what `ask` gave."""
    found = (item["counter"] for item in listed if "counter" in item)
    return {item["name"]: Count(item["packets"], item["bytes"]) for item in found}


def _undo(entry: Entry) -> None:
    table = entry.get("table")
    remove(table if isinstance(table, str) else repr(table))


UNDO: Final[dict[str, Undoer]] = {KIND: _undo}
"""For the journal: deletes the recorded table."""
