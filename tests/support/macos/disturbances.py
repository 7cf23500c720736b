"""What happens to a Mac while something else runs on it: networks that change, other programs, a reboot."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.macos import configd
from tests.support.macos.configd import Lease
from tests.support.macos.default import ETHERNET, POINT, WIFI, default_state, new_boot_id
from tests.support.macos.machine import HOME, FakeMac
from tests.support.macos.state import Address, Anchor, Interface, Route, Service, State

CAFE = Lease("10.20.30.40/22", "10.20.28.1", ["10.20.28.1"], "2001:db8:ca:fe::40/64", domain="cafe.example")
"""Another network, with other addresses and resolvers."""
OFFICE = Lease("172.16.5.9/24", "172.16.5.1", ["172.16.5.53"], domain="office.example")
"""A third one, without IPv6."""


def _service(state: State, device: str) -> Service:
    service = state.service_of(device)
    assert service is not None, f"no service has {device}"
    return service


def renew(mac: FakeMac, lease: Lease, device: str = WIFI) -> None:
    """DHCP has another answer: other addresses, another gateway, pushed routes."""
    with mac.change() as state:
        configd.take(state, _service(state, device), lease)


def roam(mac: FakeMac) -> None:
    """Wi-Fi joins another network."""
    renew(mac, CAFE)


def come_home(mac: FakeMac) -> None:
    renew(mac, HOME)


def plug_in(mac: FakeMac, lease: Lease = OFFICE) -> None:
    """A cable: Ethernet stands before Wi-Fi in the order of services and takes the default route; Wi-Fi keeps its own
    in its scope."""
    with mac.change() as state:
        configd.take(state, _service(state, ETHERNET), lease)
        _scope_defaults(state, ETHERNET)


def pull_out(mac: FakeMac) -> None:
    """The cable is gone: Wi-Fi has the default route again."""
    with mac.change() as state:
        configd.release(state, _service(state, ETHERNET))
        interface = state.interface(ETHERNET)
        assert interface is not None
        interface.status = "inactive"
        for route in state.routes:
            if _default(route) and route.interface == WIFI:
                route.flags = route.flags.replace("I", "")


def lose_network(mac: FakeMac, device: str = WIFI) -> None:
    """No lease, no default route."""
    with mac.change() as state:
        configd.release(state, _service(state, device))
        interface = state.interface(device)
        assert interface is not None
        interface.status = "inactive"


def _default(route: Route) -> bool:
    return route.destination.endswith("/0") and not route.interface.startswith("utun")


def _scope_defaults(state: State, primary: str) -> None:
    for route in state.routes:
        if _default(route) and route.interface != primary and "I" not in route.flags:
            route.flags += "I"


def delete_routes(mac: FakeMac, destinations: Sequence[str]) -> None:
    """Somebody deletes these routes, whosever they are."""
    with mac.change() as state:
        state.routes = [each for each in state.routes if each.destination not in destinations]


def replace_route(mac: FakeMac, destination: str, gateway: str, interface: str) -> None:
    """Somebody puts another route in this one's place."""
    delete_routes(mac, [destination])
    with mac.change() as state:
        state.routes.append(Route(destination, gateway, interface, "UGSc"))


def other_vpn(mac: FakeMac, *, default: bool = False) -> str:
    """Another VPN makes its utun, with a private network behind it, or the default route as well. Returns its name."""
    with mac.change() as state:
        name = f"utun{next_unit(state)}"
        interface = Interface(name, next_index(state), list(POINT), 1420, owner="another VPN")
        interface.addresses.append(Address("10.99.0.2", 32, peer="10.99.0.2"))
        state.interfaces.append(interface)
        state.routes.append(Route("10.99.0.0/16", f"link#{interface.index}", name, "UCS"))
        if default:
            _scope_defaults(state, name)
            state.routes.append(Route("0.0.0.0/0", f"link#{interface.index}", name, "UCSg"))
    return name


def next_unit(state: State) -> int:
    """Of a utun for which nobody asked by number."""
    taken = {each.name for each in state.interfaces}
    return next(unit for unit in range(10_000) if f"utun{unit}" not in taken)


def next_index(state: State) -> int:
    return 1 + max(each.index for each in state.interfaces)


def pf_flushed(mac: FakeMac) -> None:
    """Somebody flushes everything: `pfctl -F all` for the main ruleset and for each anchor."""
    with mac.change() as state:
        state.pf.main = Anchor()
        state.pf.anchors = {}
        state.pf.states = []


def anchor_flushed(mac: FakeMac, path: str) -> None:
    with mac.change() as state:
        state.pf.anchors.pop(path, None)


def pf_disabled(mac: FakeMac) -> None:
    """`pfctl -d` by another program: off, whatever tokens there are."""
    with mac.change() as state:
        state.pf.enabled = state.pf.by_hand = False
        state.pf.tokens = {}


def pf_conf_loaded(mac: FakeMac, rules: str, nat: str = "") -> None:
    """Another pf.conf is loaded: its main ruleset need not evaluate com.apple/*."""
    with mac.change() as state:
        state.pf.main = Anchor(rules, nat)


def resolver_removed(mac: FakeMac, key: str) -> None:
    """Another program removes a key of the dynamic store."""
    with mac.change() as state:
        state.store.pop(key, None)


def resolver_set(mac: FakeMac, key: str, servers: Sequence[str]) -> None:
    """Another program writes its servers into a key."""
    with mac.change() as state:
        state.store[key] = {"ServerAddresses": list(servers)}


def sysctl_set(mac: FakeMac, name: str, value: str) -> None:
    with mac.change() as state:
        state.sysctls[name] = value


def reboot(mac: FakeMac, lease: Lease | None = HOME) -> None:
    """What the kernel and configd hold is gone, files and settings stay; then the network is there again, if any."""
    with mac.change() as state:
        fresh = default_state()
        state.interfaces, state.routes, state.pf = fresh.interfaces, fresh.routes, fresh.pf
        state.store = {}
        state.sysctls = fresh.sysctls | {"kern.bootsessionuuid": new_boot_id()}
        if lease is not None:
            configd.take(state, _service(state, WIFI), lease)


def sleep_and_wake(mac: FakeMac, lease: Lease = HOME) -> None:
    """The lid is closed: the lease goes; then it is opened and the network gives one again."""
    lose_network(mac)
    renew(mac, lease)
