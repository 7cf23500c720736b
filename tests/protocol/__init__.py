"""The page docs/protocol.md, held to the product by a client that shares no code with it."""
