"""The configuration, and the only place of its defaults.

both_roles.py has the keys of both roles (identity, keepalive, rotation and so on), client.py and exit.py the others,
tun.py those of system-wide mode on both sides. exits.py, rules.py, urls.py and authorized.py read single values,
secret_files.py and keys.py the files with secrets. decode.py turns TOML and flags into these structs.
"""
