"""The system's resolver, which is set to the forwarder while the tunnel stands; and the exit's own name.

choose              which of two settings this system has: systemd-resolved, or the file /etc/resolv.conf
resolved            the first, over D-Bus
resolvconf          the second: sets and watches the file
resolvconf_files    its backup, the change, and the undo
resolvconf_text     what such a file says
bootstrap           resolves the exit's name past the tunnel, through an opening of the filter
"""
