"""The session: records, epochs, streams and their credit, rotation and resume, without any I/O.

Bytes and the time go in, bytes and calls of a handler come out. Files in the order in which a byte leaves:
streams.py (queue and credit), scheduler.py (whose turn it is), sendlog.py (what must be kept), records.py (sealing),
session.py (all of it together); rotation.py changes the keys, liveness.py watches the carrier.
"""
