"""The proxy settings of other programs on this machine: shell variables (environment.py), GNOME's settings
(gsettings.py) and those of macOS (networksetup.py), what was set before (kept.py), and the commands for them and the
PAC file (command.py)."""
