"""The datagram lane, without any I/O: sealed datagrams that may be lost, for packets, streams and UDP of a session.

layout.py has the bytes of a datagram. The other files in the order in which a packet passes: slices.py (the parts of a
super-packet), sealing.py (the lane and its keys) and sealed_train.py, opening.py and train.py (received datagrams),
replay.py (which counters were seen), joining.py (parts become packets and stretches of streams). path.py sends probes
to decide whether the lane is used, and how large its datagrams are.
"""
