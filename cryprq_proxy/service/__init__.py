"""The processes: from a configuration to a client or exit that runs, and to its end.

client.py and exit.py show the order of start and undo; startup.py is what both share. tun_mode.py is system-wide mode
as a client sees it, system_wide.py the only module that imports `tun`. demo.py runs both roles in one process.
"""
