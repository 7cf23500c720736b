"""The PAC file in headless Chromium: where real requests go, and what the function says of thousands of targets.

The browser's names are mapped to this machine, except those that only the exit knows. So a request that goes past the
proxy arrives if and only if the browser knows the name, and one that goes to the proxy if and only if the exit does.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from cryprq_proxy.address import AddressError, Destination, encode
from cryprq_proxy.rules.engine import RuleSet, load_rules
from cryprq_proxy.rules.pac.script import pac
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from tests.support import rule_cases
from tests.support.background import PATIENCE
from tests.support.browser import started
from tests.support.pac_site import Site, browse
from tests.support.programs import Client, free_port

EVALUATE = """<!doctype html><title>evaluating</title><script src="/proxy.pac"></script><script>
fetch("/urls").then(r => r.json()).then(asked =>
  fetch("/done", {method: "POST", body: JSON.stringify(asked.map(each => FindProxyForURL(each[0], each[1])))}));
</script>
"""


@pytest.fixture
def rules(tmp_path: Path, site: Site) -> RuleSet:
    listed = tmp_path / "list.txt"
    listed.write_text("listed.test\n")
    direct = RuleAction(Verdict.DIRECT)
    return load_rules(
        [
            Rule(action=RuleAction(Verdict.BLOCK), domains=("blocked.test",)),
            Rule(action=RuleAction(Verdict.TUNNEL), domains=("far.near.test",)),
            Rule(
                action=direct,
                domains=(".near.test",),
                cidrs=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
                ports=((site.port, site.port),),
            ),
            Rule(action=RuleAction(Verdict.BLOCK), lists=(listed,)),
            Rule(action=direct, domains=("*.test",), ports=((1, 1),)),
        ],
        RuleAction(Verdict.TUNNEL),
    )


def test_requests_go_where_the_rules_say(site: Site, rules: RuleSet, client: Client, tmp_path: Path) -> None:
    near = [
        f"http://near.test:{site.port}/target",
        f"http://A.B.Near.Test.:{site.port}/target?query#fragment",
        f"http://192.0.2.7:{site.port}/target",
        f"http://[2001:db8::7]:{site.port}/target",
        f"http://[2001:db8:0:0::0.0.0.7]:{site.port}/target",
        f"ws://near.test:{site.port}/ws",
    ]
    proxied = [f"http://site.test:{site.port}/target", f"ws://site.test:{site.port}/ws"]
    lost = [
        f"http://{name}:{site.port}/target"
        for name in ("blocked.test", "listed.test", "else.test", "far.near.test")
    ]
    found = browse(site, tmp_path, rules, client.port, [*near, *proxied, *lost])
    assert {url for url, text in found.items() if text.startswith("here ")} == {*near, *proxied}, found
    assert {host.partition(":")[0] for host in site.asked}.isdisjoint(
        {"blocked.test", "listed.test", "else.test", "far.near.test"}
    )


def test_without_the_proxy_nothing_goes_past_it(site: Site, rules: RuleSet, tmp_path: Path) -> None:
    """No silent DIRECT: the names are known to the browser, and it does not use that."""
    near = f"http://near.test:{site.port}/target"
    others = [f"http://{name}:{site.port}/target" for name in ("else.test", "listed.test", "blocked.test")]
    found = browse(site, tmp_path, rules, free_port(), [near, *others])
    assert {url for url, text in found.items() if text} == {near}
    assert site.asked == [f"near.test:{site.port}"]


def is_canonical(target: Destination) -> bool:
    """Whether a browser could ask for it; the cases hold a few that it could not."""
    try:
        return bool(encode(target))
    except AddressError:
        return False


@pytest.mark.parametrize("lists", [False, True], ids=["certain", "with lists"])
def test_thousands_of_targets(lists: bool, site: Site, tmp_path: Path) -> None:
    cases = rule_cases.cases(7, rules=80, targets=4000, directory=tmp_path if lists else None)
    rules = load_rules(cases.rules, cases.default)
    targets = list(filter(is_canonical, cases.targets))
    site.page = EVALUATE
    site.script = pac(rules, Destination("127.0.0.1", 1080), Destination("127.0.0.1", 1080))
    site.urls = [(f"http://{target}/", target.host) for target in targets]
    with started(tmp_path, f"http://127.0.0.1:{site.port}/"):
        answers = site.results.get(timeout=2 * PATIENCE)
    decided = [rules.decide(*target).action.verdict is Verdict.DIRECT for target in targets]
    said = [answer == "DIRECT" for answer in answers]
    assert set(answers) == {"DIRECT", "PROXY 127.0.0.1:1080; SOCKS5 127.0.0.1:1080"}
    if lists:
        assert not any(bold and not right for bold, right in zip(said, decided, strict=True))
    else:
        assert said == decided
    assert 200 < sum(said) < len(said) - 200
