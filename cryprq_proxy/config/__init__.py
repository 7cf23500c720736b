"""The configuration, and the only place of its defaults.

role.py has what both roles are told, client.py and exit.py the rest, tun.py system-wide mode on both sides. exits.py,
rules.py, urls.py and authorized.py read what people write there, secret_files.py and keys.py the files with secrets.
decode.py turns TOML and flags into these structs.
"""
