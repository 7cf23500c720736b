"""System-wide mode: the whole machine's traffic through the link, by a TUN device.

Device, routes, packet filter and DNS forwarder belong here. Only the command line imports this package, and only when
system-wide mode is asked for, so that the proxy runs where there is no TUN device and no root.
"""
