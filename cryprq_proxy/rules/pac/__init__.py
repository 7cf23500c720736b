"""The PAC file: the rules as a script that a browser applies itself.

tables.py turns rules into tables that a browser searches quickly; script.py writes the script around them.
"""
