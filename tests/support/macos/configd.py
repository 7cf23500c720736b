"""What configd does by itself on the fake Mac: addresses by DHCP and router advertisements, and the keys of the dynamic
store that follow from the interfaces and services."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_interface

from tests.support.macos.state import Address, Interface, Route, Service, State, StoreValue

DERIVED = ("State:/Network/Interface", "State:/Network/Global/")
"""Keys that begin so are configd's alone."""


@dataclass
class Lease:
    """What a network gives a service: DHCP's answer, and a router's advertisement."""

    address: str
    """With its prefix, as 192.168.1.23/24."""
    router: str
    servers: list[str]
    address6: str = ""
    """With its prefix; empty: no IPv6."""
    router6: str = "fe80::1"
    pushed: dict[str, str] = field(default_factory=dict)
    """Option 121: prefix -> gateway."""
    domain: str = "home.example"


def take(state: State, service: Service, lease: Lease) -> None:
    """The service has this lease from now on, and none it had before."""
    release(state, service)
    interface = state.interface(service.device)
    assert interface is not None
    interface.status = "active"
    _address4(state, interface, lease)
    if lease.address6:
        _address6(state, interface, lease)
    _service_keys(state, service, lease)
    follow(state)


def release(state: State, service: Service) -> None:
    """Its addresses are gone, with the routes that configd and the kernel made for them. What others have put in by a
    gateway stays, and leads to a gateway that may not be there any more: so does a host route of wg-quick."""
    interface = state.interface(service.device)
    assert interface is not None
    gone = [each for each in interface.addresses if not each.address.startswith("fe80:")]
    forget_addresses(state, interface, gone)
    dhcp = state.store.get(f"State:/Network/Service/{service.identifier}/DHCP", {})
    pushed = dhcp.get("Option_121", {})
    assert isinstance(pushed, dict)
    state.routes = [
        each
        for each in state.routes
        if each.interface != interface.name
        or _link_local(each)
        or (_by_others(each) and pushed.get(each.destination) != each.gateway)
    ]
    for kind in ("IPv4", "IPv6", "DNS", "DHCP"):
        state.store.pop(f"State:/Network/Service/{service.identifier}/{kind}", None)
    follow(state)


def forget_addresses(state: State, interface: Interface, gone: list[Address]) -> None:
    """As the kernel takes addresses away: with the host route of each that leads to lo0."""
    interface.addresses = [each for each in interface.addresses if each not in gone]
    own = {f"{each.address}/128" for each in gone} | {f"{each.address}/32" for each in gone}
    state.routes = [each for each in state.routes if each.interface != "lo0" or each.destination not in own]


def remove_interface(state: State, name: str) -> None:
    """As the kernel removes it: with its addresses, and all routes through it."""
    interface = state.interface(name)
    assert interface is not None, f"there is no {name}"
    forget_addresses(state, interface, list(interface.addresses))
    state.interfaces.remove(interface)
    state.routes = [each for each in state.routes if each.interface != name]


def _link_local(route: Route) -> bool:
    return route.destination.startswith(("fe80:", "ff0"))


def _by_others(route: Route) -> bool:
    """Whoever adds a route by a gateway with route(8) gets one that is static; configd's own defaults are too."""
    return {"G", "S"} <= set(route.flags) and not route.destination.endswith("/0")


def _address4(state: State, interface: Interface, lease: Lease) -> None:
    address, link = ip_interface(lease.address), f"link#{interface.index}"
    network = address.network
    broadcast = str(network.broadcast_address)
    interface.addresses.append(Address(str(address.ip), network.prefixlen, broadcast=broadcast))
    name = interface.name
    state.routes += [
        Route("0.0.0.0/0", lease.router, name, "UGScg"),
        Route("169.254.0.0/16", link, name, "UCS", "!"),
        Route(str(network), link, name, "UCS", "!"),
        Route(f"{lease.router}/32", link, name, "UCS", "!"),
        Route(f"{lease.router}/32", "a4:91:b1:00:00:01", name, "UHLWIir", "1172"),
        Route(f"{address.ip}/32", link, name, "UCS", "!"),
        Route(f"{broadcast}/32", "ff:ff:ff:ff:ff:ff", name, "UHLWbI", "!"),
        Route("224.0.0.0/4", link, name, "UmCS", "!"),
        Route("224.0.0.251/32", "1:0:5e:0:0:fb", name, "UHmLWI"),
        Route("255.255.255.255/32", link, name, "UCS", "!"),
        *(Route(prefix, gateway, name, "UGSc") for prefix, gateway in lease.pushed.items()),
    ]


def _address6(state: State, interface: Interface, lease: Lease) -> None:
    address = ip_interface(lease.address6)
    interface.addresses.append(
        Address(str(address.ip), address.network.prefixlen, flags=["autoconf", "secured"])
    )
    state.routes += [
        Route("::/0", f"{lease.router6}%{interface.name}", interface.name, "UGcg"),
        Route(str(address.network), f"link#{interface.index}", interface.name, "UC"),
        Route(f"{address.ip}/128", interface.ether, "lo0", "UHL"),
    ]


def _service_keys(state: State, service: Service, lease: Lease) -> None:
    key, address = f"State:/Network/Service/{service.identifier}/", ip_interface(lease.address)
    state.store[f"{key}IPv4"] = {
        "Addresses": [str(address.ip)],
        "SubnetMasks": [str(address.network.netmask)],
        "Router": lease.router,
        "InterfaceName": service.device,
    }
    if lease.address6:
        six = ip_interface(lease.address6)
        state.store[f"{key}IPv6"] = {
            "Addresses": [str(six.ip)],
            "PrefixLength": [str(six.network.prefixlen)],
            "Router": lease.router6,
            "InterfaceName": service.device,
        }
    state.store[f"{key}DNS"] = {"ServerAddresses": list(lease.servers), "DomainName": lease.domain}
    state.store[f"{key}DHCP"] = {"Option_54": lease.router, "InterfaceName": service.device}
    if lease.pushed:
        state.store[f"{key}DHCP"]["Option_121"] = dict(lease.pushed)


def follow(state: State) -> None:
    """Write the keys that follow from the rest anew."""
    store = state.store
    for key in [each for each in store if each.startswith(DERIVED)]:
        del store[key]
    store["State:/Network/Interface"] = {"Interfaces": [each.name for each in state.interfaces]}
    for each in state.interfaces:
        for version, letter in ((4, "."), (6, ":")):
            addresses = [one.address for one in each.addresses if letter in one.address]
            if addresses:
                store[f"State:/Network/Interface/{each.name}/IPv{version}"] = {"Addresses": addresses}
    primary = primary_service(state)
    if primary is None:
        return
    for family in ("IPv4", "IPv6"):
        given = store.get(f"State:/Network/Service/{primary.identifier}/{family}")
        if given is not None:
            store[f"State:/Network/Global/{family}"] = {
                "PrimaryInterface": primary.device,
                "PrimaryService": primary.identifier,
                "Router": given["Router"],
            }
    dns: dict[str, StoreValue] = dict(store.get(f"State:/Network/Service/{primary.identifier}/DNS", {}))
    if primary.dns:
        dns["ServerAddresses"] = list(primary.dns)
    if primary.search:
        dns["SearchDomains"] = list(primary.search)
    if dns:
        store["State:/Network/Global/DNS"] = dns


def primary_service(state: State) -> Service | None:
    """The first in the user's order that has an address."""
    return next(
        (each for each in state.services if f"State:/Network/Service/{each.identifier}/IPv4" in state.store),
        None,
    )
