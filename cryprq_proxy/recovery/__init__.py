"""Loss detection and congestion control of datagrams, without any I/O: after RFC 9002, for trains instead of packets.

It knows counters, bytes and times; neither keys nor sessions. A *train* is a run of datagrams with counters in a row
that leave by one system call. What a train carries is its *cargo*: it belongs to either the flight or its owner.

recovery.py (the sender's half as one object) uses round_trip.py, flight.py (what is in flight), rounds.py (what each
round trip delivered), congestion.py (what decides how much may be in flight: bbr.py, with bandwidth.py and ceiling.py)
and pacer.py (when it leaves). received.py is the receiver's half: what came, and the acknowledgements of it.
"""
