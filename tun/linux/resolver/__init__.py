"""The system's resolver on Linux, set to the forwarder while the tunnel is up.

choose              finds the setting of this system: systemd-resolved, or the file /etc/resolv.conf
resolved            the first: what is set, watched and taken back
resolved_bus        its connection to D-Bus, and the calls
resolvconf          the second: sets and watches the file
resolvconf_files    the file's backup, change and undo
resolvconf_text     the text of our file
recovery            finds what a killed process has left of the file, and undoes it
"""
