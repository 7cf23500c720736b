"""The datagram lane, without any I/O: sealed datagrams that may be lost, for packets and UDP beside a session.

Files in the order in which a packet passes: slices.py (the parts of a super-packet), sealing.py (the lane and its
keys), opening.py (what a receive brought), replay.py (which counters were seen), joining.py (parts become packets).
path.py decides by probes whether the lane is used, and with datagrams of which size.
"""
