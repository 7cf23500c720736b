"""Carriers: the connections that move a session's records from one host to the other, and the datagram lane.

Read pipe.py (a connection before it is a carrier), admission.py (the handshake on it), carrier.py (what every carrier
does), tcp.py and websocket.py (the two kinds), pacing.py (how fast bytes leave) and rekey_thread.py. dial/ makes the
connections; lane/ moves datagrams over UDP.
"""
