"""How this program was called, for sentences that tell a person to run it: a shell must find what they name.

What is said to others keeps the plain name: of another machine's program, in files that stay, to applications.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PROGRAM: Final = "cryprq-proxy"
SECURE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where sudo looks, whatever the PATH of the person who calls it."""


def to_run(words: str) -> str:
    """The command line of this program with `words` behind its name, as this person called it."""
    return f"{called(sys.argv[0], sys.orig_argv, os.environ.get('PATH', os.defpath))} {words}"


def to_run_as_root(words: str) -> str:
    """The same by sudo, which does not look into a person's own directories."""
    return f"sudo {called(sys.argv[0], sys.orig_argv, SECURE_PATH)} {words}"


def called(script: str, interpreter: Sequence[str], path: str) -> str:
    """The plain name if `path` finds the very file `script`, else how it was called, quoted for a shell.

    `script` and `interpreter` are like sys.argv[0] and sys.orig_argv. Under another program, like a test's, the plain
    name.
    """
    file = Path(script)
    if file.name == "__main__.py" and file.parent.name == "cryprq_proxy":
        return f"{shlex.quote(interpreter[0])} -m cryprq_proxy"
    found = shutil.which(PROGRAM, path=path)
    if file.name != PROGRAM or (found is not None and _same(found, script)):
        return PROGRAM
    return shlex.quote(script)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
