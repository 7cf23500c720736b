"""The exit role: strangers become peers, peers get sessions, streams get targets.

Read settings.py, then in the order of a connection: listener.py (accept, proxy_protocol.py, first_flight.py;
websocket_listener.py is the second entrance), reception.py (lobby.py, unopened_flights.py, fair_queue.py, the
handshake), exit.py (the verdict), sessions.py (what a peer has), targets.py (a stream's connection). egress_policy.py
and egress_rules.py judge destinations, limits.py and prefixes.py count strangers, flight_memory.py knows their first
flights, descriptor_shares.py counts what peers hold, providers.py is what the process may hand in.
"""
