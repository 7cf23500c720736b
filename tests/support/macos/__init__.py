"""A Mac that is kept in a file, for tests on Linux: see machine.py."""
