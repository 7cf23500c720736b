"""What a running client answers about a target: by the rules that it has, and whether its files say the same."""

from __future__ import annotations

import pytest

from cryprq_proxy.address import parse_host_port
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.process.file_watch import FileWatch
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from cryprq_proxy.service.client import run_client
from cryprq_proxy.service.explanation import EXPLAIN, explain_target
from tests.support.roles import RoleFiles, running

RULE = '[[rule]]\nname = "ads"\nto = "block"\nlists = ["ads"]\n'


async def test_a_running_client_answers_by_the_rules_that_it_has(files: RoleFiles) -> None:
    names = files.directory / "ads"
    names.write_text("ads.example\nno name\n")
    watch, broken = FileWatch(), False

    def read() -> object:
        if broken:
            raise ConfigError("client.toml: not valid")
        return files.client("", RULE)

    config = files.client("", RULE)
    async with running(lambda stop: run_client(config, read, stop, watch=watch)):  # type: ignore[arg-type]

        async def explained(target: str) -> dict[str, object]:
            return await files.command("client", EXPLAIN, target)

        found = await explained("www.ads.example:443")
        assert (found["target"], found["action"], found["rule"], found["index"]) == (
            "www.ads.example:443",
            "block",
            "ads",
            0,
        )
        assert str(found["proxy"]).endswith("by ads: its list ads holds the name")
        assert found["pac"] and found["tun"]
        assert (found["broken"], found["changed"], found["error"]) == (1, False, None)

        names.write_text("other.example\n")
        found = await explained("ads.example:443")
        assert (found["action"], found["changed"]) == ("block", True)
        watch.before_reading(anew=True)
        await files.command("client", "reload")
        found = await explained("ads.example:443")
        assert (found["action"], found["changed"], found["broken"]) == ("tunnel", False, 0)

        broken = True
        with pytest.raises(CryprqError):
            await files.command("client", "reload")
        found = await explained("other.example:443")
        assert found["action"] == "block"
        assert str(found["error"]) == "everything stays as it was: client.toml: not valid"


@pytest.mark.parametrize("target", ["", "a.example", "a b:1", "a.example:0x", "https://a.example/"])
async def test_what_is_no_target(files: RoleFiles, target: str) -> None:
    config = files.client()
    async with running(lambda stop: run_client(config, lambda: config, stop)):
        with pytest.raises(CryprqError, match="answers: expected HOST:PORT"):
            await files.command("client", EXPLAIN, target)


@pytest.mark.parametrize(
    ("target", "action", "proxy", "tun"),
    [
        (
            "cryprq.test:80",
            "own page",
            "answers itself",
            "after `check --browser`; else there is no such name",
        ),
        (
            "CRYPRQ.test.:443",
            "no such name",
            "no such name",
            "nothing is there: the page is http://cryprq.test/",
        ),
    ],
)
def test_our_own_name_is_no_matter_of_rules(target: str, action: str, proxy: str, tun: str) -> None:
    rules = RuleSet((Rule(action=RuleAction(Verdict.BLOCK), domains=("test",)),), RuleAction(Verdict.TUNNEL))
    found = explain_target(rules, parse_host_port(target))
    assert (found.action, found.index) == (action, -1)
    assert proxy in found.proxy and tun in found.tun and "which answers itself" in found.pac
