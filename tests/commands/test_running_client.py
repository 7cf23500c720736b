"""explain, env, pac and system-proxy ask the client that runs: one that flags describe, and no file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.pairs import new_identity, proxy_port
from tests.support.processes import Program, call

pytestmark = pytest.mark.process

BLOCKED = '[[rule]]\nname = "mine"\nto = "block"\ndomains = [".mine.example"]\n'


class Flagged(NamedTuple):
    """A client that was started with flags for what its file does not say, or says otherwise."""

    file: Path
    port: int


@pytest.fixture
def flagged(tmp_path: Path) -> Iterator[Flagged]:
    file = tmp_path / "client.toml"
    file.write_text(f'listen = "127.0.0.1:1"\nadmin = "off"\ncontrol_socket = "c.sock"\n{BLOCKED}')
    file.chmod(0o600)
    peer = f"cryprq://{new_identity(tmp_path / 'exit.key')}@127.0.0.1:1"
    with Program(
        "--config", str(file), "--peer", peer, "--listen", "127.0.0.1:0", "--user", "me:secret",
        "--identity", str(tmp_path / "client.key"),
    ) as client:  # fmt: skip
        yield Flagged(file, proxy_port(client))


def test_where_it_listens(flagged: Flagged) -> None:
    done = call("env", "--shell", "file", "--config", str(flagged.file))
    assert f"HTTP_PROXY=http://127.0.0.1:{flagged.port}\n" in done.stdout
    assert "--with-password" in done.stderr and "secret" not in done.stdout
    done = call("env", "--shell", "file", "--with-password", "--config", str(flagged.file))
    assert f"HTTP_PROXY=http://me:secret@127.0.0.1:{flagged.port}\n" in done.stdout
    assert done.stderr == ""
    done = call("pac", "--config", str(flagged.file))
    assert f"PROXY 127.0.0.1:{flagged.port}; SOCKS5 127.0.0.1:{flagged.port}" in done.stdout
    assert done.stderr == ""
    done = call("system-proxy", "on", "--pac", "--config", str(flagged.file))
    assert "the PAC file is served at the address admin" in done.stderr


def test_a_file_that_is_broken_now_hides_no_client(flagged: Flagged) -> None:
    flagged.file.write_text("nonsense\n")
    # Its socket is not known from a file that cannot be read.
    assert call("env", "--shell", "file", "--config", str(flagged.file)).returncode == 2
    for wrong in ("listen = 5.5", '[[rule]]\nto = "exit:none"\nports = [1]'):
        flagged.file.write_text(f'control_socket = "c.sock"\n{wrong}\n')
        done = call("env", "--shell", "file", "--config", str(flagged.file))
        assert f"HTTP_PROXY=http://127.0.0.1:{flagged.port}\n" in done.stdout
    assert "there is no exit called" in call("reload", "--config", str(flagged.file)).stderr
    flagged.file.write_text(f'control_socket = "c.sock"\n{BLOCKED}')
    done = call("reload", "--config", str(flagged.file))
    assert (done.returncode, done.stderr) == (0, ""), "the exit was given by a flag"


def test_explain_says_what_the_rules_that_run_say(flagged: Flagged) -> None:
    def explained(*more: str) -> tuple[str, str]:
        done = call("explain", "www.mine.example", *more, "--config", str(flagged.file))
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    out, err = explained()
    assert out.startswith("www.mine.example:443: block, by mine\n")
    assert err == ""
    out, _ = explained("--json")
    told = json.loads(out)
    assert (told["running"], told["file"]) == (True, str(flagged.file))

    flagged.file.write_text('control_socket = "c.sock"\n[[rule]]\nto = "exit:none"\nports = [1]\n')
    deadline = time.monotonic() + 60
    out, err = explained()
    assert out.startswith("www.mine.example:443: block, by mine\n")
    assert "its files have changed since" in err or "not by its files" in err
    while "not by its files" not in err:
        assert time.monotonic() < deadline
        _, err = explained()
    assert 'there is no exit called "none"' in err
