"""The datagram lane, without any I/O: sealed datagrams that may be lost, for packets and UDP beside a session.

layout.py has the bytes of a datagram. The other files in the order in which a packet passes: slices.py (the parts of a
super-packet), sealing.py (the lane and its keys), opening.py and train.py (received datagrams), replay.py (which
counters were seen), joining.py (parts become packets). path.py sends probes to decide whether the lane is used, and how
large its datagrams are.
"""
