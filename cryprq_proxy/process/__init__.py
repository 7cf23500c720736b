"""The process around a role: start, stop, reload, control socket, service manager.

lifecycle.py runs a role and its signals; reload.py and file_watch.py reload its configuration; control.py answers
other processes, and actions.py lists what they can ask for; sd_notify.py tells systemd, while watchdog.py
sees progress; recent_errors.py keeps the last warnings.
"""
