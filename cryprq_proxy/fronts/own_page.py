"""The page at http://cryprq.test/: what a person who opens it may know of the client through which it came.

No page of the web may find out by it that this program is here. Browsers say what a request is for (Sec-Fetch-Mode) to
trustworthy addresses only, which one in plain HTTP is not. So the page is given to

    what navigates                  Upgrade-Insecure-Requests, which no page can add to a request of another kind
    programs that run no scripts    by their names, which no page can give to a request without asking first (CORS)

and all else gets what it gets of a name that does not exist, as late. What navigates may be a frame of a page, or a
window that it has opened. Neither can be read from there. A frame shows an error like that of a name that does not
exist; and the page, too, begins only when the exit has said that the name in its place does not exist. The dispatcher
puts that there (client/dispatcher.py). What is told then comes from the exit (exit/report.py), and no third party.

In system-wide mode the page is there only for minutes that a person has asked for (tun/firewall/own_page.py).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from html import escape
from typing import Final, NamedTuple

import h11
import msgspec
from msgspec import Struct

from ..address import OWN_NAME, Destination
from ..base.text import named_exit
from ..status import ExitReport
from .http_failures import UNREADABLE

OWN_PAGE: Final = Destination(OWN_NAME, 80)
PAGE: Final = "page"
"""The command of the control socket that lets it be there in system-wide mode; see tun/firewall/own_page.py."""

_PROGRAMS: Final = re.compile(rb"(?:curl|Wget|HTTPie|Lynx|w3m|cryprq-proxy)/")
"""The beginning of User-Agent."""
_WEBRTC: Final = (
    "goes past a proxy and may show pages your own address, unless the whole system is routed (--tun); "
    "in Firefox set media.peerconnection.ice.proxy_only to true in about:config, "
    "start Chromium with --force-webrtc-ip-handling-policy=disable_non_proxied_udp"
)
_PREFETCH: Final = frozenset((b"purpose", b"sec-purpose", b"x-moz"))
"""Fields of what a browser fetches before a person wants it."""


class Facts(Struct, frozen=True, kw_only=True):
    """What the page tells. `exit`: its name; `address`: where this client reaches it; `problem`: why there is no link.
    `report`: what the exit tells about itself, None with the reason in `unasked`. `paused`: seconds left of a pause.
    `names_problem`: why no program of this machine finds a name in system-wide mode, empty if they do."""

    exit: str = ""
    address: str = ""
    up: bool = False
    problem: str = ""
    report: ExitReport | None = None
    unasked: str = ""
    paused: int = 0
    names_problem: str = ""

    @property
    def good(self) -> bool:
        """Whether pages load, as far as client and exit know."""
        report = self.report
        if not self.up or report is None or self.names_problem:
            return False
        return report.resolver.works and (report.ipv4.route or report.ipv6.route)


type TellFacts = Callable[[], Awaitable[Facts]]


async def no_facts() -> Facts:
    """Of a listener that belongs to no client."""
    return Facts()


def opens_page(request: h11.Request) -> bool:
    """Whether a person may have asked: by what navigates, or by a program that runs no scripts."""
    fields = {name: value.strip() for name, value in request.headers}
    if request.method not in (b"GET", b"HEAD") or b"origin" in fields or fields.keys() & _PREFETCH:
        return False
    if b"sec-fetch-mode" in fields or b"sec-fetch-dest" in fields:
        return fields.get(b"sec-fetch-mode") == b"navigate" and fields.get(b"sec-fetch-dest") == b"document"
    if _PROGRAMS.match(fields.get(b"user-agent", b"")):
        return True
    return fields.get(b"upgrade-insecure-requests") == b"1"


def lines(facts: Facts, *, named: bool) -> list[tuple[str, str]]:
    """The facts in words, each with its name. `named`: the proxy was asked by the name, which was not resolved here."""
    report = facts.report
    exit = named_exit(facts.exit, "", facts.address) if facts.exit else "unknown"
    if not facts.up:
        exit += f"; there is no link: {facts.problem or 'it is not up yet'}"
    names = "are resolved at the exit" if named else "are resolved here, by the forwarder of --tun"
    if not facts.up:
        names = "unknown: there is no link"
    if report is None:
        seen = ipv6 = f"unknown: {facts.unasked}" if facts.unasked else "unknown"
    else:
        seen, ipv6 = _seen(report), "yes" if report.ipv6.route else "no: the exit has no route for it"
        if report.resolver.unknown:
            whose = ", whose resolver" if named else ", and the exit's resolver"
            names += f"{whose} knows no name of the Internet"
        elif report.resolver.problem:
            names += f", but the exit's resolver fails: {report.resolver.problem}"
        if facts.names_problem:
            names += f"; of the programs that --tun routes none finds a name: {facts.names_problem}"
    told = [
        ("Exit", exit),
        ("The world sees", seen),
        ("Names", names),
        ("IPv6", ipv6),
        *_paused(facts),
        ("WebRTC", _WEBRTC),
    ]
    return [(name, _printable(value)) for name, value in told]


def _paused(facts: Facts) -> list[tuple[str, str]]:
    told = f"new connections of --tun go past the exit, for {facts.paused} s more"
    return [("Pause", told)] if facts.paused else []


def _seen(report: ExitReport) -> str:
    """The addresses of the exit, as it tells itself."""
    families = [("IPv4", report.ipv4), ("IPv6", report.ipv6)]
    known = [family.address for _, family in families if family.address]
    hidden = [name for name, family in families if family.route and not family.address]
    if hidden:
        known.append(f"an {' and an '.join(hidden)} address that the exit does not know, as behind NAT")
    return ", ".join(known) or "nothing: the exit has no route to the Internet"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


HEADLINE: Final = "This browser uses cryprq-proxy."
_STYLE: Final = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;"
    "padding:0 1rem}dl{display:grid;grid-template-columns:max-content 1fr;gap:.4rem 1.2rem}dt{opacity:.7}"
    "dd{margin:0;overflow-wrap:anywhere}"
)
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Form(NamedTuple):
    """How the page is written. Its `beginning` leaves before the facts are there: in a frame, the time until they are
    would tell the page around it that this is no name without a host."""

    kind: bytes
    beginning: str
    end: Callable[[Facts, bool], str]


def form(request: h11.Request) -> Form:
    """HTML or JSON for who asks for it, else plain text."""
    accepted = b",".join(value for name, value in request.headers if name == b"accept")
    forms = {b"text/html": _HTML, b"application/json": _JSON}
    return next((made for kind, made in forms.items() if kind in accepted), _TEXT)


def _html(facts: Facts, named: bool) -> str:
    rows = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines(facts, named=named)
    )
    return f"<dl>\n{rows}\n</dl>\n</body>\n</html>\n"


def _text(facts: Facts, named: bool) -> str:
    return "\n".join([*(f"{name}: {value}" for name, value in lines(facts, named=named)), ""])


def _json(facts: Facts, named: bool) -> str:
    return msgspec.json.encode(Checked(good=facts.good, lines=lines(facts, named=named))).decode() + "\n"


class Checked(Struct, frozen=True, kw_only=True):
    """The page as JSON. `good`: whether pages load, as far as client and exit know."""

    good: bool
    lines: list[tuple[str, str]]


_HTML: Final = Form(
    b"text/html; charset=utf-8",
    f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>cryprq-proxy</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>{HEADLINE}</h1>
""",
    _html,
)
_TEXT: Final = Form(b"text/plain; charset=utf-8", "This program uses cryprq-proxy.\n\n", _text)
_JSON: Final = Form(b"application/json", "", _json)


def head(form: Form) -> h11.Response:
    """The head of the page in that form; its length is not known yet."""
    fields = [
        (b"Content-Type", form.kind),
        (b"Content-Security-Policy", _POLICY.encode("ascii")),
        *UNREADABLE,
    ]
    return h11.Response(status_code=200, reason=b"OK", headers=fields)
