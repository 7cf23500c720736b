"""Bringing a client and an exit together by one line of text.

invitation.py makes and reads the text, invite_store.py keeps the exit's open invites, join.py redeems one and writes
the client's configuration.
"""
