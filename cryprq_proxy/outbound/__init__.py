"""Connections to targets, at the exit or at the client.

dialer.py connects a destination, with resolving/ for names and address_race.py for the addresses of a name. relay.py
joins the socket to a stream, with backlog.py for what one of them does not take yet; udp_association.py does so for
datagrams. socket_group.py serves many sockets by turns: those of one peer, or of all applications. bytestream.py has
streams to await, for code that speaks a protocol; http_reader.py, with http_chunks.py and http_sections.py, gives h11
what such a stream brings, at most a little work at once. What is odd in a response, http_heads.py and
http_loose_chunks.py write anew before.
"""
