"""Helpers that use the operating system and know nothing of the link.

Words and times: text.py (numbers in words), clock.py, log.py, log_writer.py, progress.py. Files: paths.py (locations
and reading), files.py (locks, atomic replacement), file_access.py (with whose rights), owners.py and deputy.py (root in
the directory of another user), core_dumps.py, resolv_conf.py (name servers). Sockets: accept_loop.py (for all that
listens), descriptors.py (how many there are), sockets.py (options), linger.py (closing), buffers.py (shared buffers).
The kernel: netlink.py (questions to it), rtnetlink.py (the same through pyroute2, in a limited time), netlink_watch.py
(its changes), own_addresses.py. tasks.py starts tasks, faults.py reports what callbacks of the loop raise, work.py
says what a part has done.
"""
