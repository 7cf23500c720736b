"""What is served over HTTP about the running program: the dashboard, its interface, the PAC file and the metrics.

Read server.py (what is served), guard.py (the checks before it), then events.py (live data), history.py (what was
before), metrics.py, page.py (with dashboard.html, .css and .js) and connections.py (bounds below HTTP).
"""
