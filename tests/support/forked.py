"""Command lines of the program as processes of their own that begin with everything imported: some milliseconds each.

    with Forked() as forked:
        code, out, err = forked.run(["status"], environment, directory)

One child, this file run as a script, imports the program once. For each command line it forks a process, which gets its
environment, directory, user and input, and runs it to its end as the console script does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

LIMIT = 30.0
"""Seconds for one command line; then it is killed."""


class Ended(NamedTuple):
    """How a command line ended; `code` is negative for a signal."""

    code: int
    out: str
    err: str


class Forked:
    """A context manager; one command line at a time."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        *,
        uid: int | None = None,
        given: str = "",
    ) -> Ended:
        """`given` is its standard input; `uid` is the user, by default this one."""
        assert self._child.stdin is not None and self._child.stdout is not None
        job = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(directory),
            "uid": uid,
            "given": given,
        }
        print(json.dumps(job), file=self._child.stdin, flush=True)
        return Ended(*json.loads(self._child.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(LIMIT)
        self._child.stdout.close()


def _serve() -> None:
    import importlib
    import pkgutil
    import webbrowser  # noqa: F401  these are imported late, perhaps from where another user cannot read
    from encodings import idna, utf_8_sig  # noqa: F401

    import cryprq_proxy
    import tun

    for package in (cryprq_proxy, tun):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: dict[str, Any]) -> Ended:
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(job["given"].encode())
        given.seek(0)
        if not (child := os.fork()):
            _become(job, given.fileno(), out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        return Ended(os.waitstatus_to_exitcode(status), *texts)


def _become(job: dict[str, Any], *files: int) -> None:
    import signal

    from cryprq_proxy.cli import run_command

    code = 99
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 64)
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.argv = ["cryprq-proxy", *job["arguments"]]
        if job["uid"] is not None:
            os.setgroups([])
            os.setgid(job["uid"])
            os.setuid(job["uid"])
        os.chdir(job["directory"])
        signal.alarm(int(LIMIT))
        code = run_command(job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.path.pop(0)
    _serve()
