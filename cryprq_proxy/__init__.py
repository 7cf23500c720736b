"""A local SOCKS and HTTP proxy, and the exit peer behind it, joined by a post-quantum-hybrid encrypted link.

How a byte travels: `fronts/` takes it from an application, `client/` finds or requests its stream, `session/` puts it
into records, `carriers/` sends them; the exit does the same in reverse. docs/protocol.md describes the link.
"""

__version__ = "0.1.0"
