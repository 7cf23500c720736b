"""Helpers that use the operating system and know nothing of the link.

Words and times: text.py (numbers in words), clock.py, log.py, progress.py. Files: paths.py (locations and reading),
files.py (locks, atomic replacement), resolv_conf.py (name servers). Sockets: accept_loop.py (for proxy port and
exit), sockets.py (options), linger.py (closing), buffers.py (shared buffers), netlink.py (questions to the kernel).
tasks.py starts tasks.
"""
