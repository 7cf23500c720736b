"""`cryprq-proxy doctor`: checks from the configuration to the throughput, each with one sentence and a remedy.

Read checks.py (what a check is) and order.py (all checks), then the checks: start.py (configuration, identity,
clock), algorithms.py, reach.py (name, connection, handshake), link.py and speed.py (a whole link), machine.py (this
machine; direct_names.py for its rules) and exit.py. report.py shows the findings.
"""
