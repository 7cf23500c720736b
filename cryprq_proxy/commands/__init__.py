"""The commands, one module for each subject; cli.py adds the `COMMANDS` of each.

A module imports its dependencies when a command runs (cli.py says why). common.py has shared options and asks running
processes. status/ shows running processes, desktop/ has the proxy settings of other programs.
"""
