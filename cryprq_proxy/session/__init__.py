"""The session: records, epochs, streams and their credit, rotation and resume, without any I/O.

Input: bytes and the time. Output: bytes and calls of handlers. Files in the order in which a byte leaves: streams.py
(queue and credit), scheduler.py (which stream is next), sendlog.py (frames kept until the ACK), records.py (sealing),
session.py (all of them together); rotation.py changes the keys, liveness.py watches the carrier.
"""
