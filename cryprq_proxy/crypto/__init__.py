"""The cryptography of the link.

From the bottom up: primitives.py (the only module that imports cryptographic libraries), noise.py (the Noise state),
identity.py (keys of a peer and its id), payloads.py (what the handshake carries), handshake.py (both sides of it),
rekey.py (fresh keys inside a running link).
"""
