"""The front for applications: one port for SOCKS and HTTP.

listener.py gets connections from the accept loop (base/accept_loop.py); socks_connection.py recognizes the protocol and
negotiates SOCKS with the automaton of socks.py. socks_udp.py is the UDP association. http_proxy.py serves HTTP, each
request by http_exchange.py between http_client.py and http_origin.py; http_messages.py changes messages,
http_failures.py has the error pages. own_page.py is what is told at our own name.
"""
