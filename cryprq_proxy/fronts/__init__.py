"""The front for applications: one port for SOCKS and HTTP.

listener.py gets connections from the accept loop (base/accept_loop.py) and recognizes the protocol. socks.py is the
SOCKS automaton, socks_udp.py the UDP association. http_proxy.py serves HTTP with http_messages.py (changes to a
message), http_origin.py and http_failures.py.
"""
