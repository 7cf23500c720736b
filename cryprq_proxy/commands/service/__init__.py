"""Services: `cryprq-proxy service install`, `uninstall` and `status`.

command.py   what a person says
install.py   the order of the steps, for a service of the system
own.py       the proxy of one person; what a join does for a service that waits for it
removal.py   uninstall and status
units.py     which services there are, and the text of their units, made from the samples of configs/
move.py      root's directory of the configuration, filled with what a person has tried out
rehearsal.py what would keep the service from starting, found before anything is changed
state.py     the first flights that a person's exit has answered, and root's directory of them
ownership.py both directories, given to the user of the service
launchd.py   services of macOS
manager.py   what is done where no systemd does it
"""
