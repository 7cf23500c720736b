"""Three of today's proxies for bench/wan.py, all by xray-core (Go): hysteria2, Shadowsocks 2022, VLESS with mux.

`make wanbench` builds the newest where Go is; else one is taken that PATH finds, and where there is none they are left
out. hysteria2 and VLESS are in TLS, with a certificate made for the run; hysteria2 without a bandwidth that a person
promises, so that its congestion control is BBR.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from commandline import ROOT
from hosts import EXIT
from wan_proxies import SOCKS, Proxy

from tests.support.web_links import make_certificates

BUILT = ROOT / "bench/build/xray"
PORT = 8443
NAME = "localhost"
"""In the certificate."""
KEY = "AAECAwQFBgcICQoLDA0ODw=="
"""Sixteen bytes, as 2022-blake3-aes-128-gcm wants them."""
USER = "5f0f7a3e-5b1e-4b0e-9a53-0e1f6f3c9a11"
PASSWORD = "bench"
CONCURRENCY = 8
"""Streams on one connection of mux, its default."""

Config = dict[str, Any]
METHOD: Config = {"method": "2022-blake3-aes-128-gcm", "password": KEY}


@cache
def program() -> str | None:
    return str(BUILT) if BUILT.exists() else shutil.which("xray")


@cache
def version() -> str:
    """What it says of itself, in a line."""
    path = program()
    if path is None:
        return ""
    told = subprocess.run([path, "version"], capture_output=True, text=True, check=False)
    return told.stdout.partition("\n")[0]


class XrayProxy(Proxy):
    """Subclasses give `outbound` and `inbound`, the two ends' configurations."""

    socks = SOCKS

    @staticmethod
    def missing() -> str | None:
        if program() is None:
            return "xray-core is missing; run make wanbench where Go is, or put xray into PATH"
        return None

    def outbound(self) -> Config:
        raise NotImplementedError

    def inbound(self) -> Config:
        raise NotImplementedError

    def prepare(self) -> None:
        self._ca, self._certificate, self._key = make_certificates(self.files, NAME)
        listen = {"listen": "127.0.0.1", "port": SOCKS, "protocol": "socks", "settings": {"udp": False}}
        direct = {"protocol": "freedom"}
        for role, inbound, outbound in (
            ("client", listen, self.outbound()),
            ("exit", {"listen": "0.0.0.0", "port": PORT, **self.inbound()}, direct),
        ):
            config = {"log": {"loglevel": "warning"}, "inbounds": [inbound], "outbounds": [outbound]}
            self._file(role).write_text(json.dumps(config))

    def _file(self, role: str) -> Path:
        return self.files / f"{role}.json"

    def _command(self, role: str) -> list[str]:
        return [str(program()), "run", "-c", str(self._file(role))]

    def client_command(self) -> list[str]:
        return self._command("client")

    def exit_command(self) -> list[str]:
        return self._command("exit")

    def tls(self, server: bool, *protocols: str) -> Config:
        """The part of `streamSettings` that is TLS."""
        if server:
            certificate = {"certificateFile": str(self._certificate), "keyFile": str(self._key)}
        else:
            certificate = {"certificateFile": str(self._ca), "usage": "verify"}
        settings: Config = {"certificates": [certificate], "alpn": list(protocols)}
        if not server:
            settings |= {"serverName": NAME, "disableSystemRoot": True}
        return {"security": "tls", "tlsSettings": settings}


class Hysteria(XrayProxy):
    """QUIC with BBR in the program: whatever the hosts' congestion control is, but one core."""

    name = "hysteria2"

    def _stream(self, server: bool) -> Config:
        settings = {"version": 2, "auth": PASSWORD}
        return {"network": "hysteria", "hysteriaSettings": settings, **self.tls(server, "h3")}

    def outbound(self) -> Config:
        settings = {"version": 2, "address": EXIT, "port": PORT}
        return {"protocol": "hysteria", "settings": settings, "streamSettings": self._stream(False)}

    def inbound(self) -> Config:
        return {
            "protocol": "hysteria",
            "settings": {"version": 2, "clients": [{"auth": PASSWORD}]},
            "streamSettings": self._stream(True),
        }


class Shadowsocks2022(XrayProxy):
    """A TCP connection for each stream, its request in the first segment."""

    name = "ss2022"

    def outbound(self) -> Config:
        return {"protocol": "shadowsocks", "settings": {"address": EXIT, "port": PORT, **METHOD}}

    def inbound(self) -> Config:
        return {"protocol": "shadowsocks", "settings": {**METHOD, "network": "tcp"}}


class VlessMux(XrayProxy):
    """Eight streams on each TLS connection."""

    name = "vless mux"

    def outbound(self) -> Config:
        user = {"id": USER, "encryption": "none"}
        return {
            "protocol": "vless",
            "settings": {"vnext": [{"address": EXIT, "port": PORT, "users": [user]}]},
            "streamSettings": {"network": "raw", **self.tls(False, "http/1.1")},
            "mux": {"enabled": True, "concurrency": CONCURRENCY},
        }

    def inbound(self) -> Config:
        return {
            "protocol": "vless",
            "settings": {"clients": [{"id": USER}], "decryption": "none"},
            "streamSettings": {"network": "raw", **self.tls(True, "http/1.1")},
        }


XRAY: tuple[type[XrayProxy], ...] = (Hysteria, Shadowsocks2022, VlessMux)
