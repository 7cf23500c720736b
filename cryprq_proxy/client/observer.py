"""What a client tells the one that owns it: Exits (exits.py), or nobody where it is the only client."""

from __future__ import annotations

from .requests import StreamRequest


class ClientObserver:
    """The defaults are those of a client that is the only one."""

    def link_changed(self) -> None:
        """The link came or went, or the exit is about to shut down."""

    def packets_changed(self) -> None:
        """The exit has begun or ceased to carry packets."""

    def take_over(self, request: StreamRequest) -> bool:
        """The exit refused `request` because it shuts down. True if another exit serves it."""
        return False


NO_OBSERVER = ClientObserver()
