"""Whether programs find names in system-wide mode: by a trial, and by what the forwarder's servers have come to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cryprq_proxy.errors import CryprqError
from cryprq_proxy.service import system_names
from cryprq_proxy.service.system_names import TriedNames, try_names
from cryprq_proxy.status import DnsStatus, UpstreamStatus

ILL = UpstreamStatus(name="exit", healthy=False, last_error="connection refused")
WELL = UpstreamStatus(name="tls://9.9.9.9")


@pytest.mark.parametrize(
    ("found", "upstreams", "tried"),
    [
        (True, (WELL,), TriedNames()),
        (True, (ILL, WELL), TriedNames()),
        (True, (ILL,), TriedNames("exit: connection refused", True)),
        (False, (ILL,), TriedNames("exit: connection refused", True)),
        (False, (WELL,), TriedNames("no such name")),
        (False, None, TriedNames("no such name")),
    ],
)
async def test_what_is_concluded(
    found: bool,
    upstreams: tuple[UpstreamStatus, ...] | None,
    tried: TriedNames,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that is found may have come from a cache."""
    asked: list[str] = []

    async def by_system(name: str) -> Sequence[str]:
        asked.append(name)
        if not found:
            raise CryprqError("no such name")
        return ["192.0.2.1"]

    async def dns() -> DnsStatus | None:
        assert asked == ["a.root-servers.net"], "the status is that after the trial"
        return None if upstreams is None else DnsStatus(upstreams=upstreams)

    monkeypatch.setattr(system_names, "by_system", by_system)
    assert await try_names(dns) == tried
