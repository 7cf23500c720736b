"""What a running exit takes over by a reload beside its peers: limits, and a certificate that was renewed."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cryprq_proxy.address import Destination, parse_host_port
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.exit import exit as exit_module
from cryprq_proxy.exit.settings import ExitBounds
from cryprq_proxy.process import file_watch
from cryprq_proxy.service.exit import no_network, run_exit
from cryprq_proxy.session.session import SessionLimits
from tests.support.roles import RoleFiles, running
from tests.support.settle import until
from tests.support.web_links import make_certificates, serial_of, serial_shown

TLS = 'certificate = "certificate.pem"\nkey = "key.pem"\n'
STAYS = r"the old certificate, as {}.*; mend certificate and key in \[websocket\]$"


class Renewals:
    """An exit with a certificate, and its configuration as the next reload reads it."""

    def __init__(self, files: RoleFiles) -> None:
        self.files = files
        self.web: Destination
        make_certificates(files.directory)
        self.other = files.directory / "other"
        self.other.mkdir()
        make_certificates(self.other)
        self.now = self.config()

    def config(self, tls: str = TLS, listen: str = "127.0.0.1:0", more: str = "") -> ExitConfig:
        return self.files.exit(tables=f'[websocket]\nlisten = "{listen}"\n{tls}{more}')

    def renew(self, *names: str) -> None:
        for name in names:
            shutil.copyfile(self.other / name, self.files.directory / name)

    async def reload(self) -> str:
        return str((await self.files.command("exit", "reload"))["reloaded"])

    async def shown(self) -> int:
        return await asyncio.to_thread(serial_shown, self.web)


@asynccontextmanager
async def renewals(files: RoleFiles) -> AsyncIterator[Renewals]:
    here = Renewals(files)
    async with running(lambda stop: run_exit(here.now, lambda: here.now, stop, no_network, files.authorized)):
        here.web = parse_host_port((await files.status("exit")).listen[-1])
        yield here


async def test_a_renewed_certificate_is_shown_and_connections_that_stand_stay(files: RoleFiles) -> None:
    async with renewals(files) as here:
        old = serial_of(files.directory / "certificate.pem")
        assert await here.shown() == old
        reader, writer = await asyncio.open_connection(
            *here.web, ssl=ssl.create_default_context(cafile=files.directory / "ca.pem")
        )
        assert await here.reload() == "1 peer allowed", "nothing is new"
        here.renew("certificate.pem", "key.pem")
        assert await here.reload() == "1 peer allowed, another certificate"
        assert await here.shown() == serial_of(here.other / "certificate.pem") != old
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("mismatched", r"the key \S+/key.pem does not belong to the certificate \S+/certificate.pem"),
        ("empty", r"\S+/certificate.pem or \S+/key.pem is no file in PEM format that can be used: "),
        ("no PEM", r"\S+/certificate.pem or \S+/key.pem is no file in PEM format that can be used: "),
        ("gone", r"the key \S+/key.pem cannot be read: no such file or directory"),
    ],
)
async def test_a_pair_that_cannot_be_used_holds_up_no_revocation(
    files: RoleFiles, damage: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with renewals(files) as here:
        old = serial_of(files.directory / "certificate.pem")
        key = files.directory / "key.pem"
        if damage == "mismatched":
            here.renew("certificate.pem")
        elif damage == "gone":
            key.unlink()
        else:
            key.write_text("" if damage == "empty" else "no key\n")
        files.authorize()
        said = await here.reload()
        assert re.match(f"0 peers allowed, {STAYS.format(words)}", said), said
        assert "\n" not in said
        assert [record for record in caplog.records if record.levelname == "ERROR"], "the log says so, too"
        assert (await files.status("exit")).authorized == 0  # type: ignore[union-attr]
        assert await here.shown() == old
        here.renew("certificate.pem", "key.pem")
        assert await here.reload() == "0 peers allowed, another certificate"
        assert await here.shown() != old


async def test_a_renewed_certificate_is_seen_without_being_asked(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(file_watch, "REST_SECONDS", 0.01)
    async with renewals(files) as here:
        here.renew("key.pem")
        await until(lambda: "the certificate stays the one it was" in caplog.text)
        here.renew("certificate.pem")
        await until(lambda: "reloaded: 1 peer allowed, another certificate" in caplog.text)
        assert await here.shown() == serial_of(here.other / "certificate.pem")


async def test_a_certificate_may_be_elsewhere_and_go(files: RoleFiles) -> None:
    """Other keys of the table are named; an entrance that is to go at the next start stays as it is."""
    async with renewals(files) as here:
        here.now = here.config(
            'certificate = "other/certificate.pem"\nkey = "other/key.pem"\n', more="path = '/x'"
        )
        assert (await here.reload()).endswith(
            ", another certificate; what else has changed in the configuration "
            "needs a restart: websocket.path"
        )
        new = serial_of(here.other / "certificate.pem")
        assert await here.shown() == new
        here.now = here.config("", "off")
        assert (await here.reload()).endswith("needs a restart: websocket.listen")
        assert await here.shown() == new
        here.now = here.config("")
        assert await here.reload() == "1 peer allowed, without TLS"
        with pytest.raises(OSError, match=r"(?i)ssl|eof|reset"):
            await here.shown()


async def test_limits_are_taken_over_and_nothing_that_belongs_to_other_tables(
    files: RoleFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[SessionLimits, ExitBounds]] = []
    monkeypatch.setattr(exit_module.Exit, "take_limits", lambda _, *limits: taken.append(limits))
    now = start = files.exit()
    async with running(lambda stop: run_exit(start, lambda: now, stop, no_network, files.authorized)):

        async def said() -> str:
            return str((await files.command("exit", "reload"))["reloaded"])

        now = files.exit("keepalive = 7\n", "[limits]\nsessions_per_peer = 3\n[rotation]\ninterval = 60\n")
        assert await said() == (
            "1 peer allowed, other limits; what else has changed in the configuration needs a restart: keepalive, "
            "rotation.interval"
        )
        ((limits, bounds),) = taken
        assert limits == start.session_limits() and bounds.sessions_per_peer == 3
        await said()
        assert len(taken) == 1, "they are the same"
        now = start
        assert await said() == "1 peer allowed, other limits"
        assert taken[1][1] == start.bounds()
