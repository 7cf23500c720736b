"""Leading the programs of this machine to the proxy: shell variables (environment.py), GNOME's settings
(gsettings.py), and the commands for them and the PAC file (command.py)."""
