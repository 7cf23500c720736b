"""What the block of lockdown lets out, read from the kernel: nobody runs who could be asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network, summarize_address_range
from typing import Any

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import IPNetwork, without

from ..system import LetOut
from .firewall import nft
from .firewall.nft import CLIENT, Ask


def let_out(ask: Ask = nft.ask) -> LetOut:
    """Blocks for some milliseconds. Raises ConfigError where a test would prove nothing."""
    listed = ask("list", "table", "inet", CLIENT) or []
    sets = {item["set"]["name"]: item["set"].get("elem", []) for item in listed if "set" in item}
    chains = {item["chain"]["name"] for item in listed if "chain" in item}
    if any(uid == os.geteuid() for uid in sets.get("uids", ())):
        raise ConfigError(
            "exclude_uid lets root past the tunnel, and so this test: remove that, and say lockdown on again"
        )
    if "past_the_tunnel" in chains:
        raise ConfigError(
            "rules send a part past the tunnel, and only the client can say what is a leak: test while --tun runs"
        )
    allowed: list[IPNetwork] = []
    for version, everything in ((4, IPv4Network("0.0.0.0/0")), (6, IPv6Network("::/0"))):
        for title in ("lan", "guests", "excluded"):
            if _accepts(listed, f"@{title}{version}"):
                allowed += _networks(sets.get(f"{title}{version}", ()))
        if included := list(_networks(sets.get(f"included{version}", ()))):
            allowed += without([everything], included)
    exits = [
        (str(ip_address(host)), int(port))
        for version in (4, 6)
        for host, port in (element["concat"] for element in sets.get(f"exits{version}", ()))
    ]
    return LetOut(tuple(exits), tuple(allowed))


def _accepts(listed: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether a rule of the chain `output` accepts what goes to this set, whatever else it asks for."""
    for item in listed:
        rule = item.get("rule", {})
        if rule.get("chain") != "output" or {"accept": None} not in rule["expr"]:
            continue
        matches = (part["match"] for part in rule["expr"] if "match" in part)
        if any(match["op"] == "==" and match["right"] == name for match in matches):
            return True
    return False


def _networks(elements: Iterable[Any]) -> Iterator[IPNetwork]:
    for element in elements:
        if isinstance(element, str):
            yield ip_network(element)
        elif "prefix" in element:
            yield ip_network(f"{element['prefix']['addr']}/{element['prefix']['len']}")
        elif "range" in element:
            first, last = map(ip_address, element["range"])
            yield from summarize_address_range(first, last)
        else:
            raise ConfigError(
                f"the packet filter has an element of no known kind: {json.dumps(element)[:60]}"
            )
