# SPDX-License-Identifier: LGPL-2.1-or-later
"""Networks of hosts, made by code: what the kernel says, and the host's files about it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from crashlend.capture.targets.netlink import Address, Link, Network, Route
from crashlend.capture.targets.network import LookUp
from crashlend.errors import CrashlendError

MAC = "52:54:00:00:00:01"
ETH0 = Link(2, "eth0", MAC, MAC)
ROUTES = (
    Route(2, "192.0.2.0/24", "", "192.0.2.5"),
    Route(2, "0.0.0.0/0", "192.0.2.1"),
    Route(2, "2001:db8::/64", ""),
    Route(2, "::/0", "fe80::1"),
)
HOST = Network(
    (ETH0,),
    (
        Address(2, "192.0.2.5", 24),
        Address(2, "2001:db8::5", 64),
        Address(2, "2001:db8::aaaa", 64, 3600, temporary=True),
        Address(2, "fe80::5", 64),
    ),
    ROUTES,
)


def look_up_in(network: Network) -> LookUp:
    """What ``ip route get`` would say on that host."""

    def look_up(address: str) -> Route:
        ip = ipaddress.ip_address(address)
        nets = ((ipaddress.ip_network(route.destination), route) for route in network.routes)
        found = [
            (net.prefixlen, route) for net, route in nets if net.version == ip.version and ip in net
        ]
        if not found:
            raise CrashlendError(f"cannot reach {address}", "Network is unreachable")
        _, best = max(found, key=lambda pair: pair[0])
        return Route(best.index, f"{address}/{ip.max_prefixlen}", best.gateway, best.source)

    return look_up


def card(root: Path, name: str, driver: str = "virtio_net") -> None:
    """A network card with a driver that is a module, in sysfs."""
    device = root / f"sys/devices/pci0000:00/{name}-device"
    (device / "net" / name).mkdir(parents=True)
    module = root / "sys/module" / driver
    module.mkdir(parents=True, exist_ok=True)
    bound = root / "sys/bus/virtio/drivers" / driver
    if not bound.exists():
        bound.mkdir(parents=True)
        (bound / "module").symlink_to(f"/sys/module/{driver}")
    (device / "driver").symlink_to(f"/sys/bus/virtio/drivers/{driver}")
    (device / "net" / name / "device").symlink_to(f"/sys/devices/pci0000:00/{name}-device")
    at = root / "sys/class/net"
    at.mkdir(parents=True, exist_ok=True)
    (at / name).symlink_to(f"/sys/devices/pci0000:00/{name}-device/net/{name}")


def write(root: Path, path: str, text: str, mode: int = 0o600) -> None:
    """A file of the host."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
