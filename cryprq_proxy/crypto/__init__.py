"""The cryptography of the link.

From the bottom up: primitives.py (the only module that imports cryptographic libraries), symmetric.py and noise.py (the
Noise Protocol Framework), identity.py (a peer's keys and its id), payloads.py (what the handshake carries),
handshake.py (its two sides), rekey.py (fresh keys inside a running link).
"""
