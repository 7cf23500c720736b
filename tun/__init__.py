"""System-wide mode: the whole machine's traffic through the link, by a TUN device.

Read `tunnel.py` first: the order in which the client's side is set up and undone. `interface.py` is the network
interface that it starts, `guard.py` the tasks that put back what other programs change, `exit_network.py` the exit's
side. `journal.py` writes each change down before it is made. The packages hold the parts: `device/`, `routing/`,
`firewall/`, `resolver/`, `dns/`, `leaktest/`. Only one module of cryprq_proxy/service imports this package, and only
for system-wide mode, so the proxy runs where there is no TUN device and no root.
"""
