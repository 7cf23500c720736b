"""The proxy settings of other programs on this machine: shell variables (environment.py), GNOME's settings
(gsettings.py), and the commands for them and the PAC file (command.py)."""
