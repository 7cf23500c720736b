"""What a killed system-wide mode has left on this machine, and whether one lives: for every user, without root.

A kill leaves the marks, and ends the sign of life. What they are is the system's own: linux_marks.py and
abstract_sign.py, macos_marks.py and lock_sign.py. Elsewhere there is no system-wide mode, so nothing is found.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Literal, Protocol

from ..errors import ConfigError
from .paths import ROLES, Role
from .program import to_run_as_root

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
CLEANUP_SECONDS: Final = 10.0
"""How long a start waits for a cleanup, which takes well under a second."""
type _Name = Role | Literal["cleanup"]
_CLEANUP: Final = "cleanup"
_POLL: Final = 0.02


class SystemMarks(Protocol):
    """What one system shows: a module."""

    @property
    def HOLDING(self) -> frozenset[str]:
        """The words of what holds this machine's traffic in."""
        ...

    def marks(self, role: Role) -> tuple[str, ...]:
        """What a `role` has set, as far as this user can see, in words."""
        ...

    def table_stands(self, role: Role) -> bool | None:
        """Whether the packet filter of `role` stands; None for a user who cannot see it. Blocks for milliseconds."""
        ...

    def lockdown(self) -> bool: ...


class SignOfLife(Protocol):
    """A sign of life that may be taken: a context manager, which ends it."""

    def take(self) -> bool:
        """Whether it is this process's now."""
        ...

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """Let others look for it as often as they like."""
        ...

    def __enter__(self) -> SignOfLife: ...

    def __exit__(self, *_: object) -> None: ...


def _marks() -> SystemMarks | None:
    """Those of this system."""
    match sys.platform:
        case "linux":
            from . import linux_marks

            return linux_marks
        case "darwin":
            from . import macos_marks

            return macos_marks
    return None


def _sign(name: str) -> SignOfLife:
    """That of `name` on this system."""
    if sys.platform == "darwin":
        from .lock_sign import LockSign

        return LockSign(name)
    from .abstract_sign import AbstractSign

    return AbstractSign(name)


# --- the sign of life ---


@contextlib.contextmanager
def claimed(role: Role) -> Iterator[None]:
    """Be the one `role` in system-wide mode of this machine; on Linux, of this network namespace.

    Waits for a cleanup that runs, at most CLEANUP_SECONDS. Raises ConfigError if there is another one.
    """
    with _sign_of(role) as sign, sign.answering():
        yield


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Be the one cleanup there, where neither role lives. Waits and raises as `claimed`."""
    with contextlib.ExitStack() as signs:
        signs.enter_context(_sign_of(_CLEANUP))
        for role in ROLES:
            signs.enter_context(_sign_of(role))
        yield


@contextlib.contextmanager
def _sign_of(name: _Name) -> Iterator[SignOfLife]:
    give_up = time.monotonic() + CLEANUP_SECONDS
    with _sign(name) as sign:
        while not sign.take():
            pid = holder(name)
            if pid is not None and pid == holder(_CLEANUP):
                if time.monotonic() >= give_up:
                    raise ConfigError(
                        f"cryprq-proxy cleanup (pid {pid}) still runs: try again when it has ended"
                    )
                time.sleep(_POLL)
                continue
            # The other one may have ended just now.
            if sign.take():
                break
            if pid is not None:
                raise ConfigError(in_use(pid))
            # A user without rights has it. That must not keep this process from its work.
            break
        yield sign


def in_use(pid: int | None) -> str:
    """What to say to a second one."""
    known = f" (pid {pid})" if pid else ""
    return f"another cryprq-proxy runs in system-wide mode{known}: stop that one first"


def holder(role: _Name) -> int | None:
    """The process id of the `role` that lives here in system-wide mode, or of the cleanup.

    0 if it is of another PID namespace, None if there is none.
    """
    match sys.platform:
        case "linux":
            from .abstract_sign import holder as found
        case "darwin":
            from .lock_sign import holder as found
        case _:
            return None
    return found(role)


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
    here = _marks()
    return here is not None and not here.HOLDING.isdisjoint(left)


def marks(role: Role) -> tuple[str, ...]:
    """What a `role` that no longer lives has left, as far as this user can see, in words; empty if one lives."""
    here = _marks()
    return here.marks(role) if here is not None and holder(role) is None else ()


def table_stands(role: Role) -> bool | None:
    """Whether the packet filter of `role` stands; None for a user who cannot see it. Blocks for some milliseconds."""
    here = _marks()
    return None if here is None else here.table_stands(role)


def lockdown() -> bool:
    """Whether `lockdown on` is in force here, as far as this user can see."""
    here = _marks()
    return here is not None and here.lockdown()
