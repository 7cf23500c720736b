"""sysctl(8), as far as values are read by name and set."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.support.macos.machine import Answer, FakeMac

USAGE = """\
usage: sysctl [-bdehiNnoqx] [-B <bufsize>] [-f filename] name[=value] ...
       sysctl [-bdehNnoqx] [-B <bufsize>] -a
"""
_NAME = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)+")
_READ_ONLY = ("kern.boot", "kern.os")


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    words = list(argv[1:])
    options = set()
    while words and words[0].startswith("-"):
        options |= set(words.pop(0)[1:])
    if not words or not options <= set("nwi"):
        return Answer(1, "", USAGE)
    out, err, code = "", "", 0
    for word in words:
        name, equals, value = word.partition("=")
        before = mac.read().sysctls.get(name)
        if before is None or not _NAME.fullmatch(name):
            if "i" not in options:
                err, code = err + f"sysctl: unknown oid '{name}'\n", 1
        elif not equals:
            out += f"{before}\n" if "n" in options else f"{name}: {before}\n"
        elif name.startswith(_READ_ONLY):
            err, code = err + f"sysctl: oid '{name}' is read only\n", 1
        elif mac.uid:
            err, code = err + f"sysctl: {name}: Operation not permitted\n", 1
        else:
            with mac.change() as state:
                state.sysctls[name] = value
            out += f"{value}\n" if "n" in options else f"{name}: {before} -> {value}\n"
    return Answer(code, out, err)
