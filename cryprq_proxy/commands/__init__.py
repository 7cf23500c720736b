"""The commands, by what they are about. The modules import what they need when a command runs (cli.py says why)."""
