"""An application in Python whose sockets are those of PySocks: see tests/e2e/test_languages.py."""

import socket
import sys
import urllib.request

import socks

kind, port, base, what = sys.argv[1:]
kinds = {"socks": socks.SOCKS5, "socks4": socks.SOCKS4, "http": socks.HTTP}
socks.set_default_proxy(kinds[kind], "127.0.0.1", int(port))
socket.socket = socks.socksocket  # type: ignore[misc]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
if what == "give-up":
    try:
        opener.open(base + "/", timeout=0.2)
    except TimeoutError:
        print("gave up", flush=True)
        sys.stdin.read()
else:
    print(opener.open(base + "/hello", timeout=30).read().decode(), end="")
    request = urllib.request.Request(base + "/upload", iter([bytes(100_000)] * 3))
    print(opener.open(request, timeout=30).read().decode(), end="")
