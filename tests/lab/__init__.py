"""Networks of their own for the tests: hosts made of namespaces, a far server, packet captures."""
