"""The dashboard's page: one self-contained answer, made of three source files at the first request.

Style and script stand inside the page, and the Content-Security-Policy names them by their hashes (CSP Level 3,
section 6.7.3): no other script runs there, whatever a hostile name contains.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final, NamedTuple

NOTHING: Final = (
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The policy of every answer but the page: data that is opened as a page can do nothing."""


class Page(NamedTuple):
    body: bytes
    policy: str
    """Its Content-Security-Policy."""
    etag: str


@cache
def dashboard() -> Page:
    """Read the files of the package, once."""
    folder = files(__package__)
    html, style, script = (
        folder.joinpath(name).read_text("utf-8")
        for name in ("dashboard.html", "dashboard.css", "dashboard.js")
    )
    body = html.replace("/* dashboard.css */", style).replace("/* dashboard.js */", script).encode()
    policy = (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; connect-src 'self'; "
        f"img-src data:{NOTHING.removeprefix("default-src 'none'")}"
    )
    return Page(body, policy, etag(body))


def etag(body: bytes) -> str:
    """A strong entity tag (RFC 9110 section 8.8.3): the same for the same bytes, and for no others."""
    return f'"{sha256(body).hexdigest()[:32]}"'


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
