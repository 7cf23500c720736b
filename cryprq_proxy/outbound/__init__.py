"""Connections to targets, from whichever machine they leave.

dialer.py connects a destination, with resolver.py for names; relay.py joins the socket to a stream, udp_association.py
does so for datagrams. bytestream.py is a stream to await, for code that speaks a protocol.
"""
