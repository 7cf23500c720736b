"""configs/Caddyfile is read by a real Caddy, Debian 12's 2.6 among them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "configs" / "Caddyfile"


@pytest.mark.process
@pytest.mark.skipif(
    shutil.which("caddy") is None, reason="caddy is not installed; on Debian: apt-get install caddy"
)
def test_caddy_reads_it(tmp_path: Path) -> None:
    read = subprocess.run(
        ["caddy", "adapt", "--adapter", "caddyfile", "--config", str(FILE)],
        env=os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert read.returncode == 0, read.stderr
    made = json.dumps(json.loads(read.stdout), separators=(",", ":"))
    assert '"dial":"127.0.0.1:8443"' in made
    assert '"path":["/cryprq"]' in made
