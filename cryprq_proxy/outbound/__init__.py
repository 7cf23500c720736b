"""Connections to targets, at the exit or at the client.

dialer.py connects a destination, with resolving/ for names. relay.py joins the socket to a stream; udp_association.py
does so for datagrams. bytestream.py has streams to await, for code that speaks a protocol.
"""
