"""`cryprq-proxy doctor`: one question after the other, from the configuration to the last byte, each with a remedy."""
