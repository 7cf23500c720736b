"""The files of one exit and its clients in a directory, and their processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from cryprq_proxy.config.keys import save_identity
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from tests.support.processes import Program, call, receive


def new_identity(file: Path) -> str:
    identity = Identity.generate(select_provider())
    save_identity(identity, file)
    return str(identity.peer_id)


class Setup:
    """Two identities and the files of an exit that lets the client in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.exit_id = new_identity(directory / "exit.key")
        self.client_id = new_identity(directory / "client.key")
        (directory / "authorized").write_text(f"{self.client_id} laptop\n")
        self.exit_port = 0

    def exit(self, *flags: str) -> Program:
        config = self.directory / "exit.toml"
        config.write_text(
            f'identity = "exit.key"\nlisten = "127.0.0.1:{self.exit_port}"\nallow_private = true\n'
            'control_socket = "e.sock"\n'
        )
        program = Program("exit", "--config", str(config), *flags)
        try:
            self.exit_port = int(program.log.wait(r"ready: exit on 127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            program.__exit__()
            raise
        return program

    def client(self, name: str = "client") -> Program:
        config = self.directory / f"{name}.toml"
        config.write_text(
            f'identity = "{name}.key"\nlisten = "127.0.0.1:0"\ncontrol_socket = "{name[0]}.sock"\n'
            f'admin = "off"\npeer = "cryprq://{self.exit_id}@127.0.0.1:{self.exit_port}"\n'
        )
        return Program("--config", str(config))

    def status(self, name: str) -> dict[str, object]:
        done = call("status", "--json", "--config", str(self.directory / f"{name}.toml"))
        assert (done.returncode, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer


def proxy_port(client: Program) -> int:
    return int(client.log.wait(r"ready: .* proxy on 127\.0\.0\.1:(\d+)")[1])


def echo(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    assert receive(sock, len(data)) == data
