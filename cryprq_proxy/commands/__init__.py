"""The commands, a module for each subject; `COMMANDS` of each are what cli.py adds.

Every module imports what it needs when a command runs (cli.py says why). common.py holds shared options and asks
running processes; status/ shows what runs, desktop/ leads the programs of this machine to the proxy.
"""
