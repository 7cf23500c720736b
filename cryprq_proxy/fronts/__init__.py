"""What applications speak to: one port for SOCKS and HTTP.

listener.py accepts and tells the protocols apart. socks.py is the SOCKS automaton, socks_udp.py the UDP association.
http_proxy.py serves HTTP with http_messages.py (what becomes of a message), http_origin.py and http_failures.py.
"""
