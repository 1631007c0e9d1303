# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way over the network to a server: which interface leads there, and what it takes to set it up.

The kernel is asked which way it would send a packet there. Of that interface the crash kernel gets
the hardware's own addresses (names may change, MACs do not), what it is made of, its addresses and
the routes that matter; how they came to production decides whether they are asked for again.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from crashlend.capture.hosttree import follow, read_text
from crashlend.capture.modules import Want
from crashlend.capture.targets import netlink
from crashlend.capture.targets.target import File
from crashlend.capture.targets.way import unique, walk_up
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.capture.targets.access import Access
    from crashlend.capture.targets.netlink import Address, Link, Network, Route

PARTS = ("network",)
Resolve = Callable[[str], "list[str]"]
LookUp = Callable[[str], "Route"]

# Where resolvers are named; the stubs of systemd-resolved and NetworkManager name themselves.
_RESOLVERS = (
    "etc/resolv.conf",
    "run/systemd/resolve/resolv.conf",
    "run/NetworkManager/no-stub-resolv.conf",
)
# What DHCP clients leave behind, with {name} and {index} of the interface: an address that they set
# without a lifetime looks like a static one.
_NETWORKD_LEASE = "run/systemd/netif/leases/{index}"
_LEASES = (
    _NETWORKD_LEASE,
    "run/dhclient.{name}.pid",
    "run/dhclient-{name}.pid",
    "run/udhcpc.{name}.pid",
    "run/dhcpcd-{name}.pid",
    "run/dhcpcd/{name}.pid",
    "run/dhcpcd/{name}-4.pid",
)
_BOND_FILES = ("mode", "miimon", "xmit_hash_policy", "lacp_rate", "fail_over_mac")
_UDHCPC = """#!/bin/sh
# Called by udhcpc: the lease goes into a file, for init to act on.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
umask 077
for name in ip mask router dns staticroutes; do
  eval "value=\\$$name"
  echo "lease_$name='$(echo "$value" | tr -cd '0-9./ ')'"
done >"$LEASE.new"
mv "$LEASE.new" "$LEASE"
"""


@dataclass(frozen=True)
class Base:
    """The hardware below an interface: one card, or several below a bond. ``vlan`` 0 is none."""

    cards: tuple[Link, ...]
    bond: str = ""  # of a bond: name=value words for its files in sysfs
    vlan: int = 0


@dataclass(frozen=True)
class Reach:
    """How a server is reached. ``says`` tells people what was decided."""

    address: str
    variables: dict[str, str]
    wants: tuple[Want, ...]
    files: tuple[File, ...]
    says: str
    tools: tuple[str, ...] = ("ip",)


def reach(
    root: Path,
    host: str,
    access: Access,
    *,
    network: Optional[Network] = None,
    look_up: LookUp = netlink.look_up,
    resolve: Optional[Resolve] = None,
) -> Reach:
    """The way from the host at ``root`` to the server ``host``, a name or an address.

    ``network`` and ``look_up`` stand for the running kernel, ``resolve`` for the resolver. Raises
    CrashlendError where the name is unknown, nothing leads there, or it leads over what a crash
    kernel could not set up again.
    """
    if network is None:
        if root != Path("/"):
            raise CrashlendError(
                f"cannot find the way to {host}",
                "only the kernel of a running host knows it",
                hint="build the initramfs on the host itself",
            )
        network = netlink.read_network()
    address, route = _first_way(host, (resolve or _resolve)(host), look_up)
    link = next((link for link in network.links if link.index == route.index), None)
    if link is None:
        raise CrashlendError(
            f"cannot dump to {host}", f"{address} is this host itself", hint="name another server"
        )
    base = find_base(root, network, link)
    family = ipaddress.ip_address(address).version
    own = [a for a in network.addresses if a.index == link.index and a.family == family]
    by_dhcp = family == 4 and _is_dhcp(root, link, own, access.network_address)
    dns = _resolvers(root, family)
    variables = {
        "TARGET_HOST": host,
        "TARGET_ADDRESS": address,
        "TARGET_NET_NAME": link.name,
        "TARGET_NET_CARDS": " ".join(card.permanent or card.mac for card in base.cards),
        "TARGET_NET_BOND": base.bond,
        "TARGET_NET_VLAN": str(base.vlan or ""),
        "TARGET_NET_MAC": _own_mac(link, base),
        "TARGET_NET_MTU": str(link.mtu),
        "TARGET_NET_DHCP": "1" if by_dhcp else "0",
        "TARGET_NET_CLIENT": _client(root, link) if by_dhcp else "",
        "TARGET_NET_ADDRESSES": " ".join(_addresses(own, route, family)),
        "TARGET_NET_ROUTES": " ".join(_routes(network, link, [address, *dns], look_up)),
        "TARGET_NET_DNS": " ".join(dns),
        "TARGET_NET_TIMEOUT": str(access.network_timeout),
    }
    how = "DHCP, else the last address" if by_dhcp else "as now"
    says = f"{address} by {link.name} ({variables['TARGET_NET_CARDS']}), addresses {how}"
    script = File("etc/crashlend/udhcpc", _UDHCPC.encode(), 0o755, "takes a DHCP lease")
    wants = _wants(root, base, f"network to {host}")
    if by_dhcp:
        return Reach(address, variables, wants, (script,), says, ("ip", "udhcpc"))
    return Reach(address, variables, wants, (), says)


def check_host(host: str, spec: str) -> str:
    """``host`` without brackets. CrashlendError for what is neither a name nor an address."""
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if ipaddress.ip_address(plain).version == 6 and plain == host:
            raise CrashlendError(
                f"cannot use the dump target {spec}",
                "an IPv6 address needs brackets",
                hint="[ADDRESS]",
            )
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", host):
            raise CrashlendError(
                f"cannot use the dump target {spec}",
                f"{host!r} is no name of a host",
                hint="name a host, an IPv4 address or an [IPv6 address]",
            ) from None
    return plain


def find_base(root: Path, network: Network, link: Link) -> Base:
    """What hardware an interface is made of. CrashlendError for what is not supported."""
    if link.kind == "vlan":
        lower = next((below for below in network.links if below.index == link.lower), None)
        base = find_base(root, network, lower) if lower else None
        if base is None or base.vlan:
            raise _unsupported(link, "a VLAN inside another")
        return Base(base.cards, base.bond, link.vlan)
    ports = [port for port in network.links if port.master == link.index]
    if link.kind == "bond":
        where = follow(root, root / "sys/class/net" / link.name) / "bonding"
        active = read_text(where / "active_slave")
        # the one in use first: it will be in use again
        ports.sort(key=lambda port: port.name != active)
        cards = tuple(port for port in ports if _is_hardware(root, port))
        if not cards or len(cards) != len(ports):
            raise _unsupported(link, "a bond of something else than network cards")
        return Base(cards, _bond_words(where))
    if link.kind == "bridge":
        # guests' ports are not there after the crash; the one to the outside is enough
        outside = [p for p in ports if p.kind in ("vlan", "bond") or _is_hardware(root, p)]
        if len(outside) != 1:
            raise _unsupported(link, f"a bridge with {len(outside)} ports to the outside")
        return find_base(root, network, outside[0])
    if link.kind or not _is_hardware(root, link):
        raise _unsupported(link, link.kind or "made by software")
    return Base((link,))


def _unsupported(link: Link, why: str) -> CrashlendError:
    return CrashlendError(
        f"cannot dump over the interface {link.name}",
        f"it is {why}, which a crash kernel could not set up",
        hint="network cards, VLANs, bonds of cards and bridges over one of these are supported: "
        "name a server on such a network",
    )


def _is_hardware(root: Path, link: Link) -> bool:
    where = root / "sys/class/net" / link.name
    place = follow(root, where)
    if (place / "phy80211").exists() or (place / "wireless").exists():
        return False
    return bool(link.mac) and follow(root, place / "device").exists()


def _bond_words(where: Path) -> str:
    words = []
    for name in _BOND_FILES:
        value = read_text(where / name).split(" ")[0]  # "802.3ad 4"
        # some belong to one mode alone, and others refuse them
        if value and (name != "lacp_rate" or "mode=802.3ad" in words):
            words.append(f"{name}={value}")
    return " ".join(words) or "mode=active-backup"


def _own_mac(link: Link, base: Base) -> str:
    """The MAC that production has given to the interface, "" where it is the hardware's."""
    first = base.cards[0]
    return "" if link.mac == (first.permanent or first.mac) else link.mac


def _resolve(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CrashlendError(
            f"cannot resolve {host}",
            error.strerror or str(error),
            hint="names are resolved when the crash kernel is loaded, and again in it: "
            "add it to DNS or /etc/hosts, or name the address",
        ) from error
    return list(dict.fromkeys(str(entry[4][0]).split("%")[0] for entry in found))


def _first_way(host: str, addresses: Sequence[str], look_up: LookUp) -> tuple[str, Route]:
    error: Optional[CrashlendError] = None
    for address in addresses:
        try:
            return address, look_up(address)
        except CrashlendError as failed:
            error = error or failed
    raise error or CrashlendError(f"cannot resolve {host}", "it has no address")


def _is_dhcp(root: Path, link: Link, own: Sequence[Address], wish: str) -> bool:
    if wish != "auto":
        return wish == "dhcp"
    if any(address.valid_seconds is not None for address in own):
        return True
    for pattern in _LEASES:
        if (root / pattern.format(name=link.name, index=link.index)).exists():
            return True
    stanza = rf"(?m)^\s*iface\s+{re.escape(link.name)}\s+inet\s+dhcp\b"
    files = [root / "etc/network/interfaces", *(root / "etc/network/interfaces.d").glob("*")]
    return any(re.search(stanza, read_text(file)) for file in files)


def _client(root: Path, link: Link) -> str:
    """The client identifier of networkd's lease, in hexadecimal; "" where the MAC does.

    To a server another identifier is another host, which gets another address (RFC 2131, 4.2). Others
    send the MAC or none, as busybox does.
    """
    lease = read_text(root / _NETWORKD_LEASE.format(index=link.index))
    found = re.search(r"(?m)^CLIENTID=([0-9a-fA-F]+)$", lease)
    return found[1] if found else ""


def _addresses(own: Sequence[Address], route: Route, family: int) -> list[str]:
    usable = [
        a for a in own if not a.temporary and not ipaddress.ip_address(a.address).is_link_local
    ]
    words = [f"{a.address}/{a.prefix}" for a in usable]
    if not words and family == 4 and route.source:
        words = [f"{route.source}/32"]  # an address of another interface ("unnumbered")
    return words


def _routes(network: Network, link: Link, wanted: Sequence[str], look_up: LookUp) -> list[str]:
    """DESTINATION,GATEWAY of the default routes and of what is wanted, out of this interface."""
    family = ipaddress.ip_address(wanted[0]).version
    every = "0.0.0.0/0" if family == 4 else "::/0"
    words = [f"default,{r.gateway}" for r in network.routes if _is(r, link, every)]
    for address in wanted:
        try:
            route = look_up(address)
        except CrashlendError:
            continue  # a resolver that production cannot reach either
        if route.index == link.index and route.gateway and f"default,{route.gateway}" not in words:
            words.append(f"{address}/{32 if family == 4 else 128},{route.gateway}")
    if any("." not in word.split(",")[1] for word in words) and family == 4:
        raise _unsupported(link, "on the way to IPv4 addresses by IPv6 routers")
    return list(dict.fromkeys(words))


def _is(route: Route, link: Link, destination: str) -> bool:
    return route.index == link.index and route.destination == destination and bool(route.gateway)


def _resolvers(root: Path, family: int) -> list[str]:
    found: list[str] = []
    for name in _RESOLVERS:
        for word in re.findall(r"(?m)^nameserver\s+(\S+)", read_text(follow(root, root / name))):
            try:
                address = ipaddress.ip_address(word.split("%")[0])
            except ValueError:
                continue
            if not address.is_loopback and address.version == family:
                found.append(str(address))
    return list(dict.fromkeys(found))[:3]  # MAXNS of resolv.h


def _wants(root: Path, base: Base, why: str) -> tuple[Want, ...]:
    wants: list[Want] = []
    for card in base.cards:
        device = follow(root, root / "sys/class/net" / card.name / "device")
        wants += walk_up(root, device, f"{card.name}, {why}")
    if base.bond:
        wants.append(Want("bonding", why))
    if base.vlan:
        wants.append(Want("8021q", why))
    # built in nearly everywhere; udhcpc sends raw packets
    wants += [Want(name, why, optional=True) for name in ("af_packet", "ipv6")]
    return unique(wants)
