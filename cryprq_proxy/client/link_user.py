"""What a link tells whoever uses it."""

from __future__ import annotations

from typing import Protocol

from ..errors import StreamReason
from ..session.streams import Stream


class LinkUser(Protocol):
    """What is told of a link's life. `link_opens`: streams may be requested, the verdict is still to come.
    `streams_lost`: a session is about to end with these."""

    def link_opens(self) -> None: ...
    def link_up(self) -> None: ...
    def link_down(self) -> None: ...
    def stream_opened(self, stream: Stream) -> None: ...
    def stream_refused(self, stream: Stream, reason: StreamReason, untouched: bool) -> bool: ...
    def streams_lost(self, streams: list[Stream]) -> None: ...
