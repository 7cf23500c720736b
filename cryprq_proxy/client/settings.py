"""What a client knows of one exit before it dials it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..base.text import named_exit, short_id
from ..carriers.dial.endpoint import Endpoint
from ..carriers.dial.upstream import UpstreamProxy
from ..carriers.lane.settings import LaneSettings
from ..crypto.identity import PeerId
from ..session.session import SessionLimits
from ..session.wire import LaneUse

type Connect = Literal["eager", "learned", "exact"]
"""When an application hears that its target is connected: at once, at once if the exit has reached it lately
(reached.py), or when the exit says so."""


class EndpointMemory:
    """The text of the endpoint of one exit that worked last, if it is known. `changed` gets each new one."""

    def __init__(self, last: str | None = None, changed: Callable[[str], None] = lambda text: None) -> None:
        self.last = last
        self._changed = changed

    def remember(self, endpoint: Endpoint) -> None:
        """A link came up by `endpoint`."""
        if self.last != str(endpoint):
            self.last = str(endpoint)
            self._changed(self.last)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The link to one exit, which the configuration calls `name`.

    `endpoints` are the exit's addresses, the preferred one first. They are raced (endpoints.py). `memory` knows which
    one worked in an earlier run. `wait_for_link` is the time in seconds that a request may wait for the link. `lane`
    is about the datagram lane; None: no lane. `lane_use`: what streams may use of it.
    `mark` is the SO_MARK of the link's own sockets, or 0. `invite` is the secret (16 bytes) that gets this client onto
    the exit's list; it is shown until the exit has admitted the client. `ca` is a file with the certificates that are
    trusted for wss instead of the system's.
    """

    peer: PeerId
    endpoints: tuple[Endpoint, ...]
    limits: SessionLimits
    wait_for_link: float
    connect: Connect
    lane_use: LaneUse
    psk: bytes | None = field(default=None, repr=False)
    upstream: UpstreamProxy | None = None
    lane: LaneSettings | None = None
    mark: int = 0
    invite: bytes | None = field(default=None, repr=False)
    memory: EndpointMemory = field(default_factory=EndpointMemory, compare=False)
    ca: Path | None = None
    name: str = ""

    @property
    def shown(self) -> str:
        """The exit for a person, where its address says nothing."""
        return self.name or short_id(str(self.peer))

    def shown_at(self, address: object) -> str:
        """The exit for a person, with where it is reached."""
        return named_exit(self.name, str(self.peer), address)
