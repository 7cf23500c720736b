"""The system's resolver, set to the forwarder while the tunnel is up; and the exit's own name.

choose              finds the setting of this system: systemd-resolved, or the file /etc/resolv.conf
resolved            the first: what is set, watched and taken back
resolved_bus        its connection to D-Bus, and the calls
resolvconf          the second: sets and watches the file
resolvconf_files    the file's backup, change and undo
resolvconf_text     the text of our file
left_alone          nothing is set, and why names work nonetheless
bootstrap           resolves the exit's name past the tunnel, through an opening of the filter
known_addresses     the last addresses of that name, on the disk
"""
