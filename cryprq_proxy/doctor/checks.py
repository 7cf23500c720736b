"""The checks: what they are, what they return, and their order.

    configuration --> identity --> handshake --> lane --> throughput
          |                            ^
          +--> name --> reach ---------+          an arrow: the next one needs it

A check is a small async function over a `Context`. It returns a `CheckVerdict`: a state, one sentence, and a remedy
for a fault. A check is skipped if one of its needs has failed, and names that need; a warning does not count as failed.
Nothing here changes the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..address import Destination
from ..base.log import describe, one_line
from ..base.progress import Progress, unseen
from ..crypto.primitives import Provider, select_provider
from ..errors import CryprqError
from ..status import AskedExit, ClientStatus, ExitStatus, Status

if TYPE_CHECKING:
    from ..client.client import Client
    from ..config.client import ClientConfig
    from ..config.exit import ExitConfig
    from ..crypto.identity import Identity


class CheckState(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    """Works, but could work better, or a person should know."""
    FAIL = "fail"
    SKIP = "skip"


class CheckVerdict(NamedTuple):
    """`text` is the result in one sentence; `remedy` says what to do, or is empty."""

    state: CheckState
    text: str
    remedy: str = ""


class Finding(NamedTuple):
    """A verdict with the name of its check, free of control characters."""

    name: str
    state: CheckState
    text: str
    remedy: str


@dataclass(slots=True)
class Context:
    """The input of the checks: options, results of earlier checks, and the environment, which tests replace."""

    file: Path | None = None
    """The configuration; None for the default one."""
    flags: Mapping[str, object] = field(default_factory=dict)
    """Those of the running role, which stand over the configuration."""
    flags_told: str = ""
    """Their names."""
    speed: str | None = None
    """The URL to measure throughput with."""
    target: Destination | None = None
    """What is to be reached through the exit."""
    progress: Callable[[str], Progress] = unseen

    # Results of earlier checks.
    client: ClientConfig | None = None
    exit: ExitConfig | None = None
    provider: Provider | None = None
    identity: Identity | None = None
    running: Status | None = None
    """The status of the role that runs here."""
    link: Client | None = None
    """A link of our own, while it is up."""
    linked_exit: str = ""
    """The name of its exit."""
    asked: AskedExit | None = None
    """What the exit in use has told about itself."""
    closing: list[Callable[[], Awaitable[object]]] = field(default_factory=list)
    """Called at the end, in reverse order."""

    # The environment.
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    now: Callable[[], float] = time.time
    which: Callable[[str], str | None] = shutil.which
    root: Path = Path("/")
    """The directory of /dev, /proc and others."""
    euid: int = field(default_factory=os.geteuid)
    select_provider: Callable[[str | None], Provider] = select_provider

    @property
    def config(self) -> ClientConfig | ExitConfig:
        """Of the role that is checked. Only for checks that need the check of the configuration."""
        config = self.client or self.exit
        assert config is not None
        return config

    @property
    def client_config(self) -> ClientConfig:
        assert self.client is not None
        return self.client

    @property
    def exit_config(self) -> ExitConfig:
        assert self.exit is not None
        return self.exit

    @property
    def keys(self) -> tuple[Identity, Provider]:
        """Only for checks that need the check of the identity."""
        assert self.identity is not None and self.provider is not None
        return self.identity, self.provider

    @property
    def running_client(self) -> ClientStatus | None:
        return self.running if isinstance(self.running, ClientStatus) else None

    @property
    def running_exit(self) -> ExitStatus | None:
        return self.running if isinstance(self.running, ExitStatus) else None

    async def close(self) -> None:
        while self.closing:
            await self.closing.pop()()


class Check(NamedTuple):
    """`needs`: names of checks that must have ended with OK or WARN."""

    name: str
    run: Callable[[Context], Awaitable[CheckVerdict]]
    needs: tuple[str, ...] = ()


def ok(text: str) -> CheckVerdict:
    return CheckVerdict(CheckState.OK, text)


def warn(text: str, remedy: str = "") -> CheckVerdict:
    return CheckVerdict(CheckState.WARN, text, remedy)


def fail(text: str, remedy: str) -> CheckVerdict:
    return CheckVerdict(CheckState.FAIL, text, remedy)


def skip(text: str) -> CheckVerdict:
    return CheckVerdict(CheckState.SKIP, text)


def output_of(*command: str, seconds: float = 5.0) -> str | None:
    """What a program prints; None if it fails. Blocks for at most `seconds`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


async def examine(
    checks: Sequence[Check], context: Context, told: Callable[[Finding], None] = lambda _: None
) -> list[Finding]:
    """Run `checks` in their order; `told` gets each finding at once. An error of a check becomes a finding too."""
    passed: set[str] = set()
    findings = []
    try:
        for check in checks:
            missing = next((need for need in check.needs if need not in passed), None)
            verdict = (
                await _verdict(check, context)
                if missing is None
                else skip(f"not tried: it needs {missing!r} to be in order first")
            )
            if verdict.state in (CheckState.OK, CheckState.WARN):
                passed.add(check.name)
            finding = Finding(check.name, verdict.state, one_line(verdict.text), one_line(verdict.remedy))
            findings.append(finding)
            told(finding)
    finally:
        await context.close()
    return findings


async def _verdict(check: Check, context: Context) -> CheckVerdict:
    try:
        return await check.run(context)
    except (CryprqError, OSError) as error:
        # Most errors say what to do. A check with a better remedy has caught its error.
        return fail(describe(error), "mend what this sentence names, then ask again")
