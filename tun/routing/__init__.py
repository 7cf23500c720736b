"""Routes and addresses: which traffic enters the tunnel, and which stays outside.

`lan.py` says what is LAN, `exit_endpoints.py` and `tunnel_addresses.py` hold the addresses of the exits and of this
client, `address_pool.py` those that an exit hands out. `marked_socket.py` makes sockets that leave past the tunnel.
"""
