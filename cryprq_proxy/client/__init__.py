"""The client role: one link to each exit, and the choice for each request of an application.

requests.py says what a request is, dispatcher.py applies the rules to it. exits.py and selection.py choose the exit,
client.py serves requests at one exit. link.py keeps the link up with endpoints.py (the race), kept_session.py and
backoff.py; roaming.py leaves an address that is gone. direct.py connects past the exits. packet_ports.py leads to the
network interface of system-wide mode.
"""
