"""The cryptography of the link: primitives, Noise, identities, the handshake and the rotation of keys."""
