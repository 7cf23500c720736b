"""Dialling: from an endpoint of an exit to a pipe on which the handshake can begin.

Read upstream.py (a proxy on the path), tcp.py (one TCP connection, by any of a host's addresses), socks5.py and
http_connect.py (through a proxy), connect.py (which of them), websocket.py (what stands on the connection), dial.py
(the one call for all carriers). race.py tries several endpoints against each other.
"""
