"""Carriers: what takes a session's records from one host to the other."""
