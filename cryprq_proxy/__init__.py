"""A local SOCKS and HTTP proxy, and the exit peer behind it, joined by a post-quantum-hybrid encrypted link.

The way of a byte: `fronts/` take it from an application, `client/` finds or opens its stream, `session/` puts it into
records, `carriers/` onto a socket; the exit does the same in reverse. docs/protocol.md describes the link.
"""

__version__ = "0.1.0"
