"""The cryptography of the link.

From the bottom up: primitives.py (the only module that imports cryptographic libraries), symmetric.py and noise.py (the
Noise Protocol Framework), identity.py (a peer's keys and its id), payloads.py (what the handshake carries),
handshake.py (its patterns and results), signer.py and flights.py (what its sides share), client_handshake.py and
exit_handshake.py (the sides), rekey.py (fresh keys inside a running session).
"""
