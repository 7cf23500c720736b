"""Routes and addresses: which traffic enters the tunnel, and which stays outside.

`lan.py` reads the kernel's messages and `kernel_state.py` all of its tables at one look, `route_rules.py` says which
rules there should be, `routes.py` makes the kernel agree and keeps it so, told by base/netlink_watch.py.
`exit_endpoints.py` and `tunnel_addresses.py` hold the addresses of the exits and of this client, `address_pool.py`
those that an exit hands out. `marked_socket.py` makes sockets that leave past the tunnel. `macos.py` has the commands
of macOS.
"""
