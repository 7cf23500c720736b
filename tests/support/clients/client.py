"""An application in Python, with nothing but the standard library: see tests/e2e/test_languages.py."""

import http.client
import sys
import urllib.request
from urllib.parse import urlsplit

kind, port, base, what = sys.argv[1:]
target = urlsplit(base)


def fetch(path: str, body: list[bytes] | None, timeout: float) -> str:
    """Without a length, a body goes in chunks."""
    if kind == "http":
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{port}"})
        )
        request = urllib.request.Request(base + path, iter(body) if body else None)
        with opener.open(request, timeout=timeout) as answer:
            return str(answer.read().decode())
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=timeout)
    connection.set_tunnel(target.hostname or "", target.port)
    connection.request("POST" if body else "GET", path, iter(body) if body else None)
    try:
        return connection.getresponse().read().decode()
    finally:
        connection.close()


if what == "give-up":
    try:
        fetch("/", None, 0.2)
    except TimeoutError:
        print("gave up", flush=True)
        sys.stdin.read()
else:
    print(fetch("/hello", None, 30), end="")
    print(fetch("/upload", [bytes(100_000)] * 3, 30), end="")
