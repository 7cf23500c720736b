"""Routing on Linux: `route_rules.py` says what is wanted, `routes.py` sets and keeps it. The others:

kernel_state        what the kernel has, at one look
table_routes        the routes of our own table
foreign_rules       rules of other programs, and whether they decide before ours
pool_routes         the exit's routes to its clients
"""
