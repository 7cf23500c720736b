"""A PAC file in a JavaScript engine (QuickJS) instead of a browser."""

from __future__ import annotations

import json
from collections.abc import Sequence

import quickjs

from cryprq_proxy.address import AddressError, Destination, encode

SOCKS = Destination("127.0.0.1", 1080)
HTTP = Destination("::1", 8080)
PROXY = "PROXY [::1]:8080; SOCKS5 127.0.0.1:1080"
DIRECT = "DIRECT"


class Engine:
    """The PAC file of some rules, and nothing else that a browser has."""

    def __init__(self, script: str) -> None:
        self._context = quickjs.Context()
        self._context.eval(script)
        self._all = self._context.eval(
            "(function (asked) { return JSON.stringify(JSON.parse(asked).map(function (each) {"
            " return FindProxyForURL(each[0], each[1]); })); })"
        )

    def ask(self, url: str, host: str) -> str:
        return self.ask_all([(url, host)])[0]

    def ask_all(self, asked: Sequence[tuple[str, str]]) -> list[str]:
        answers: list[str] = json.loads(self._all(json.dumps(asked)))
        assert set(answers) <= {PROXY, DIRECT}
        return answers

    def decide(self, targets: Sequence[Destination]) -> list[str]:
        return self.ask_all([(f"http://{each}/", each.host) for each in targets])


def is_canonical(target: Destination) -> bool:
    """Whether the proxy could get it; the cases hold a few that it could not."""
    try:
        return bool(encode(target))
    except AddressError:
        return False
