"""A second `join` while the client runs, an exit that is taken out of the configuration, and limits: no restart."""

from __future__ import annotations

import subprocess

from cryprq_proxy.process.control import query
from tests.support.applications import read_exactly, through
from tests.support.programs import Client, Exit, World, until
from tests.support.targets import TcpTarget


def call(world: World, *arguments: str) -> str:
    done = subprocess.run(
        world.command(*arguments),
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def exits(client: Client) -> dict[str, bool]:
    """Their names, and whether each answers."""
    return {exit["name"]: exit["healthy"] for exit in client.status()["exits"]}


def test_a_second_join_adds_the_exit_and_one_that_is_removed_runs_out(
    world: World, echo_target: TcpTarget
) -> None:
    listed = world.directory / "peers"
    listed.touch()
    first = world.exit()
    second = world.exit({"authorized": str(listed)}, clients=(), identity="other")
    client = world.client(first)
    file = world.directory / f"{client.name}.toml"

    def echoes(exit: Exit) -> None:
        """By a new connection, of which `exit` knows."""
        before = exit.streams
        with through(client.port, echo_target.port) as new:
            new.sendall(b"hello")
            assert read_exactly(new, 5) == b"hello"
            assert exit.streams == before + 1

    with through(client.port, echo_target.port) as old:
        old.sendall(b"before")
        assert read_exactly(old, 6) == b"before"

        uri = call(world, "invite", "laptop", "--config", str(world.directory / f"{second.name}.toml"))
        joined = call(world, "join", uri, "--name", "two", "--config", str(file))
        assert (
            "the client that runs uses it from now on: 0 rules, 0 listed names, 2 exits (new: two)\n"
            in joined
        )
        assert list(exits(client)) == ["127.0.0.1", "two"]
        until(lambda: exits(client) == {"127.0.0.1": True, "two": True}, "the second exit answers")
        asked = [query(client.control, "report", 15, argument=name)["exit"] for name in ("", "two")]
        assert asked == ["127.0.0.1", "two"]
        echoes(first)
        query(client.control, "exit", argument="two")
        echoes(second)
        old.sendall(b"still here")
        assert read_exactly(old, 10) == b"still here"

        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if first.peer_id not in line))
        until(lambda: list(exits(client)) == ["two"], "the first exit is gone")
        echoes(second)
        old.sendall(b"to its end")
        assert read_exactly(old, 10) == b"to its end"
        assert len(first.sessions) == 1
    until(lambda: not first.sessions, "its session ends with the last stream")
    echoes(second)


def test_what_cannot_change_while_it_runs_is_named(world: World, echo_target: TcpTarget) -> None:
    exit, client = world.pair()
    for role, key in ((client, "via = true\n"), (exit, "shutdown_grace = 7.5\n")):
        file = world.directory / f"{role.name}.toml"
        text = file.read_text()
        old = "shutdown_grace = 0.5\n"
        assert key != old
        file.write_text(text.replace(old, key) if old in text else key + text)
        said = query(role.control, "reload")["reloaded"]
        assert said.endswith(f"needs a restart: {key.partition(' ')[0]}")
        role.says(f"reloaded: .* needs a restart: {key.partition(' ')[0]}")
