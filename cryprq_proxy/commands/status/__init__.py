"""`cryprq-proxy status`: command.py asks, view.py shows rows, tables.py tables below them, live.py repeats both."""
