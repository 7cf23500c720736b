"""The first thing that a newcomer does: the demo, and the curl line that it prints."""

from __future__ import annotations

import shlex
import signal
import subprocess

from tests.support.applications import Curl
from tests.support.background import PATIENCE
from tests.support.programs import World, free_port
from tests.support.targets import HttpTarget


def test_demo(world: World, curl: Curl, http: HttpTarget) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with subprocess.Popen(
        world.command("demo", "--listen", listen),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**world.environment, "E2E_HOSTS": "example.com=127.0.0.1"}, cwd=world.directory,
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        try:
            line = next(line for line in demo.stdout if line.strip().startswith("curl "))
            words = shlex.split(line)
            assert listen in line
            words[-1] = f"http://example.com:{http.port}/hello"
            assert curl.get(*words[1:]) == b"hello\n"
        finally:
            demo.send_signal(signal.SIGINT)
            _, log = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0
    assert "Traceback" not in log
    assert "error" not in log
