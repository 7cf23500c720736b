"""What a session tells its owner, besides the handlers of its streams."""

from __future__ import annotations

from collections.abc import Callable

from ..address import Destination
from ..errors import StreamReason
from .streams import Stream

type Refused = Callable[[Stream, StreamReason, bool], bool]
"""Called at the dialler when the exit refused a stream; True as third argument: nothing was sent on it. If it returns
True, the stream's handler is not called."""


class SessionEvents:
    """Each is replaced by its listener."""

    __slots__ = ("advertised", "goaway", "idle", "opened", "proven", "refused", "renewed")

    def __init__(self) -> None:
        self.opened: Callable[[Stream], None] = _ignore_stream
        """At the dialler: the exit has connected the destination of a stream, whose handler is called next."""
        self.refused: Refused = _not_handled
        self.goaway: Callable[[], None] = nothing
        """At the dialler: the exit takes no new streams of this session."""
        self.advertised: Callable[[Destination], None] = ignore_address
        """At the dialler: the exit says where it is reached itself."""
        self.proven: Callable[[], None] = nothing
        """The lane carries the session, and the peer has answered there since the last path was lost."""
        self.idle: Callable[[], None] = nothing
        """The session may have become idle; called in the middle of its work."""
        self.renewed: Callable[[], None] = nothing
        """The secrets by which a path joins have changed."""


def nothing() -> None:
    """An event that nobody waits for."""


def _ignore_stream(stream: Stream) -> None:
    """`opened` by default."""


def ignore_address(address: Destination) -> None:
    """`advertised` by default."""


def _not_handled(stream: Stream, reason: StreamReason, untouched: bool) -> bool:
    """`refused` by default: leave a refused stream to its handler."""
    return False
