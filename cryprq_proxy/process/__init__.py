"""The process around a role: start and stop, control socket, service manager, reading again.

lifecycle.py runs a role and its signals; reload.py and file_watch.py read its configuration again; control.py answers
other processes; sd_notify.py tells systemd; recent_errors.py keeps the last warnings.
"""
