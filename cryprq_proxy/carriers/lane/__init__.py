"""The datagram lane's sockets and drivers; the cryptography of the lane is in cryprq_proxy/lane/.

Read batch.py (what is moved), udp_socket.py (one socket), offload_check.py (what this kernel does right), inbox.py (how
a socket is read), train.py and carrier.py (one session's lane), driver.py (the streams on it) and held.py (what waits
for them), client.py and listener.py (its two sides), and packet_link.py (the object beside the session that chooses
between lane and carrier).
"""
