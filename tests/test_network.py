# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way over the network to a server: what the crash kernel is told of it."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from crashlend.capture.targets import netlink
from crashlend.capture.targets.access import Access
from crashlend.capture.targets.netlink import Address, Link, Network, Route
from crashlend.capture.targets.network import Reach, check_host, reach
from crashlend.errors import CrashlendError, FormatError
from networks import ETH0, HOST, MAC, ROUTES, card, look_up_in, write


def way(root: Path, host: str = "192.0.2.9", network: Network = HOST, **access: object) -> Reach:
    return reach(
        root,
        host,
        Access(**access),  # type: ignore[arg-type]
        network=network,
        look_up=look_up_in(network),
        resolve=lambda name: {
            "server": ["198.51.100.7"],
            "both": ["2001:db8:1::7", "192.0.2.9"],
        }.get(name, [name]),
    )


def test_a_static_address_is_copied_with_the_card_by_its_mac(tmp_path: Path) -> None:
    """Address, MTU, driver and hardware address are production's; a neighbour takes no route."""
    card(tmp_path, "eth0")
    found = way(tmp_path, network=replace(HOST, routes=ROUTES[:1]))
    assert found.address == "192.0.2.9"
    assert found.variables["TARGET_NET_CARDS"] == MAC
    assert found.variables["TARGET_NET_DHCP"] == "0"
    assert found.variables["TARGET_NET_ADDRESSES"] == "192.0.2.5/24"
    assert found.variables["TARGET_NET_ROUTES"] == ""
    assert found.variables["TARGET_NET_MAC"] == ""
    assert [want.name for want in found.wants] == ["virtio_net", "af_packet", "ipv6"]
    assert "eth0" in found.says
    assert not found.files


def test_a_server_behind_a_router_takes_the_default_route(tmp_path: Path) -> None:
    """A name is resolved at once, and its address is the fallback."""
    card(tmp_path, "eth0")
    found = way(tmp_path, "server")
    assert found.variables["TARGET_HOST"] == "server"
    assert found.variables["TARGET_ADDRESS"] == "198.51.100.7"
    assert found.variables["TARGET_NET_ROUTES"] == "default,192.0.2.1"


def test_a_route_of_its_own_is_copied_beside_the_default(tmp_path: Path) -> None:
    """A more specific route by another router is what the kernel says, and what is copied."""
    card(tmp_path, "eth0")
    routes = (*ROUTES, Route(2, "198.51.100.0/24", "192.0.2.254"))
    found = way(tmp_path, "server", replace(HOST, routes=routes))
    assert found.variables["TARGET_NET_ROUTES"] == ("default,192.0.2.1 198.51.100.7/32,192.0.2.254")


def test_an_ipv6_server_takes_no_temporary_and_no_link_local_address(tmp_path: Path) -> None:
    """What privacy extensions made is left behind; the kernel makes link-local ones itself."""
    card(tmp_path, "eth0")
    found = way(tmp_path, "2001:db8:1::7")
    assert found.variables["TARGET_NET_ADDRESSES"] == "2001:db8::5/64"
    assert found.variables["TARGET_NET_ROUTES"] == "default,fe80::1"


def test_the_first_address_that_can_be_reached_is_taken(tmp_path: Path) -> None:
    """A name with an IPv6 address is no obstacle on a host without IPv6."""
    card(tmp_path, "eth0")
    network = replace(HOST, routes=ROUTES[:2])
    assert way(tmp_path, "both", network).address == "192.0.2.9"
    with pytest.raises(CrashlendError, match="unreachable"):
        way(tmp_path, "2001:db8:1::7", network)


@pytest.mark.parametrize(
    ("file", "text", "dhcp"),
    [
        ("", "", False),
        ("run/systemd/netif/leases/2", "ADDRESS=192.0.2.5\n", True),
        ("run/dhclient.eth0.pid", "77\n", True),
        ("run/dhclient.eth1.pid", "77\n", False),
        ("etc/network/interfaces", "auto eth0\niface eth0 inet dhcp\n", True),
        ("etc/network/interfaces.d/a", "iface eth0 inet static\n", False),
    ],
)
def test_dhcp_is_known_by_what_its_clients_leave(
    tmp_path: Path, file: str, text: str, dhcp: bool
) -> None:
    """Not every client gives the address a lifetime."""
    card(tmp_path, "eth0")
    if file:
        write(tmp_path, file, text)
    assert way(tmp_path).variables["TARGET_NET_DHCP"] == str(int(dhcp))


def test_networkd_s_lease_says_who_it_was_given_to(tmp_path: Path) -> None:
    """The server knows the host by that, and would give another address to another."""
    card(tmp_path, "eth0")
    lease = "run/systemd/netif/leases/2"
    write(tmp_path, lease, "ADDRESS=192.0.2.5\nCLIENTID=ff9f6e8524\n")
    assert way(tmp_path).variables["TARGET_NET_CLIENT"] == "ff9f6e8524"
    write(tmp_path, lease, "ADDRESS=192.0.2.5\nCLIENTID=01 -s evil\n")
    assert way(tmp_path).variables["TARGET_NET_CLIENT"] == ""


def test_an_address_with_a_lifetime_came_by_dhcp_and_is_kept_as_the_last_one(
    tmp_path: Path,
) -> None:
    """The setting overrides what is seen, either way."""
    card(tmp_path, "eth0")
    leased = replace(HOST, addresses=(Address(2, "192.0.2.5", 24, 3000),))
    found = way(tmp_path, network=leased)
    assert found.variables["TARGET_NET_DHCP"] == "1"
    assert found.variables["TARGET_NET_ADDRESSES"] == "192.0.2.5/24"
    assert [file.path for file in found.files] == ["etc/crashlend/udhcpc"]
    static = way(tmp_path, network=leased, network_address="static")
    assert static.variables["TARGET_NET_DHCP"] == "0"
    forced = way(tmp_path, network_address="dhcp")
    assert forced.variables["TARGET_NET_DHCP"] == "1"


def test_stub_resolvers_are_not_copied_but_those_behind_them(tmp_path: Path) -> None:
    """127.0.0.53 is nobody in a crash kernel."""
    card(tmp_path, "eth0")
    write(tmp_path, "etc/resolv.conf", "nameserver 127.0.0.53\n")
    write(tmp_path, "run/systemd/resolve/resolv.conf", "nameserver 203.0.113.1\nnameserver ::1\n")
    assert way(tmp_path).variables["TARGET_NET_DNS"] == "203.0.113.1"


def test_a_vlan_over_a_bond_becomes_cards_bond_and_number(tmp_path: Path) -> None:
    """Each card is found by its hardware's address, not by the bond's."""
    for name in ("eth0", "eth1"):
        card(tmp_path, name)
    other = "52:54:00:00:00:02"
    write(tmp_path, "sys/class/net/bond0/bonding/mode", "802.3ad 4\n")
    write(tmp_path, "sys/class/net/bond0/bonding/miimon", "100\n")
    write(tmp_path, "sys/class/net/bond0/bonding/lacp_rate", "slow 0\n")
    links = (
        replace(ETH0, master=4),
        Link(3, "eth1", MAC, other, master=4),
        Link(4, "bond0", MAC, kind="bond"),
        Link(5, "bond0.7", MAC, kind="vlan", lower=4, vlan=7),
    )
    network = Network(links, (Address(5, "192.0.2.5", 24),), (Route(5, "192.0.2.0/24", ""),))
    found = way(tmp_path, network=network)
    assert found.variables["TARGET_NET_CARDS"] == f"{MAC} {other}"
    assert found.variables["TARGET_NET_BOND"] == "mode=802.3ad miimon=100 lacp_rate=slow"
    assert found.variables["TARGET_NET_VLAN"] == "7"
    assert {"bonding", "8021q", "virtio_net"} <= {want.name for want in found.wants}
    write(tmp_path, "sys/class/net/bond0/bonding/active_slave", "eth1\n")
    assert way(tmp_path, network=network).variables["TARGET_NET_CARDS"] == f"{other} {MAC}"


def test_a_bridge_is_its_port_to_the_outside_with_the_bridges_mac(tmp_path: Path) -> None:
    """Guests' ports are left out; two ports to the outside are refused."""
    card(tmp_path, "eth0")
    card(tmp_path, "eth1")
    links = (
        replace(ETH0, master=4),
        Link(3, "vnet0", "fe:54:00:00:00:09", kind="tun", master=4),
        Link(4, "br0", "52:54:00:00:00:77", kind="bridge"),
    )
    network = Network(links, (Address(4, "192.0.2.5", 24),), (Route(4, "192.0.2.0/24", ""),))
    found = way(tmp_path, network=network)
    assert found.variables["TARGET_NET_CARDS"] == MAC
    assert found.variables["TARGET_NET_MAC"] == "52:54:00:00:00:77"
    two = replace(network, links=(*links, Link(6, "eth1", MAC, MAC, master=4)))
    with pytest.raises(CrashlendError, match="a bridge with 2 ports"):
        way(tmp_path, network=two)


@pytest.mark.parametrize("kind", ["team", "openvswitch", "wireguard", "tun"])
def test_what_a_crash_kernel_could_not_set_up_is_refused(tmp_path: Path, kind: str) -> None:
    """The refusal names the interface, and the hint what is supported."""
    links = (Link(2, "odd0", MAC, kind=kind),)
    with pytest.raises(CrashlendError, match=f"over the interface odd0: it is {kind}") as caught:
        way(tmp_path, network=replace(HOST, links=links))
    assert "VLANs" in caught.value.hint


def test_a_wireless_card_is_refused(tmp_path: Path) -> None:
    """Its keys and its daemon are not there after the crash."""
    card(tmp_path, "eth0")
    (tmp_path / "sys/devices/pci0000:00/eth0-device/net/eth0/phy80211").mkdir()
    with pytest.raises(CrashlendError, match="made by software"):
        way(tmp_path)


def test_the_host_itself_is_no_server(tmp_path: Path) -> None:
    """The way to an own address leads over loopback, which is not among the links."""
    card(tmp_path, "eth0")
    with pytest.raises(CrashlendError, match="this host itself"):
        reach(
            tmp_path,
            "192.0.2.5",
            Access(),
            network=HOST,
            look_up=lambda address: Route(1, f"{address}/32", "", address),
        )


def test_another_hosts_files_do_not_tell_the_way(tmp_path: Path) -> None:
    """A snapshot has no kernel to ask."""
    with pytest.raises(CrashlendError, match="only the kernel of a running host"):
        reach(tmp_path, "192.0.2.9", Access())


@pytest.mark.parametrize("host", ["-o", "a b", "a;b", "[::1", "", "x/", "2001:db8::1"])
def test_odd_hosts_are_refused(host: str) -> None:
    """None of these reaches a program as a word."""
    with pytest.raises(CrashlendError):
        check_host(host, "ssh://…")


def test_hosts_in_brackets_are_addresses() -> None:
    """Brackets are the address bar's, not the address's."""
    assert check_host("[2001:db8::1]", "x") == "2001:db8::1"


def attribute(kind: int, data: bytes) -> bytes:
    padded = data + bytes(-len(data) % 4)
    return struct.pack("=HH", 4 + len(data), kind) + padded


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def test_links_are_read_from_netlink() -> None:
    """A VLAN with its number; no hardware address where there is none."""
    data = attribute(1, b"vlan\0") + attribute(2, attribute(1, struct.pack("=H", 7)))
    body = struct.pack("=BxHiII", 0, 1, 5, 0, 0)
    body += attribute(3, b"eth0.7\0") + attribute(1, bytes.fromhex("525400000001"))
    body += attribute(4, struct.pack("=I", 9000)) + attribute(5, struct.pack("=I", 2))
    body += attribute(18, data)
    assert netlink.parse_link(body) == Link(5, "eth0.7", MAC, "", 9000, "vlan", 2, 0, 7)


def test_lifetimes_and_flags_are_read_from_netlink() -> None:
    """A permanent address has no lifetime; one that failed DAD is not there."""

    def address(flags: int, valid: int, family: int = socket.AF_INET, raw: bytes = b"") -> bytes:
        raw = raw or bytes((192, 0, 2, 5))
        body = struct.pack("=BBBBI", family, 24, flags, 0, 2)
        body += attribute(2 if family == socket.AF_INET else 1, raw)
        return body + attribute(6, struct.pack("=IIII", valid, valid, 0, 0))

    assert netlink.parse_address(address(0x80, 0xFFFFFFFF)) == Address(2, "192.0.2.5", 24)
    assert netlink.parse_address(address(0, 3600)) == Address(2, "192.0.2.5", 24, 3600)
    ip6 = socket.inet_pton(socket.AF_INET6, "2001:db8::5")
    assert netlink.parse_address(address(0x08, 60, socket.AF_INET6, ip6)) is None
    found = netlink.parse_address(address(0x01, 60, socket.AF_INET6, ip6))
    assert found is not None
    assert found.temporary


def test_the_kernels_answers_are_put_together() -> None:
    """Loopback and what is not of the main table are left out."""

    def ask(kind: int, body: bytes, dump: bool) -> list[bytes]:
        assert dump
        if kind == netlink.GETLINK:
            loopback = struct.pack("=BxHiII", 0, 772, 1, 0, 0) + attribute(3, b"lo\0")
            eth0 = struct.pack("=BxHiII", 0, 1, 2, 0, 0) + attribute(3, b"eth0\0")
            return [loopback, eth0]
        if kind == netlink.GETADDR:
            return [struct.pack("=BBBBI", 2, 8, 0x80, 254, 1) + attribute(2, bytes((127, 0, 0, 1)))]
        if body[0] != socket.AF_INET:
            return []
        main, local = (
            struct.pack("=BBBBBBBBI", 2, 0, 0, 0, table, 4, 0, 1, 0)
            + attribute(4, struct.pack("=I", 2))
            + attribute(5, bytes((192, 0, 2, 1)))
            for table in (254, 255)
        )
        return [main, local]

    found = netlink.read_network(ask)
    assert [link.name for link in found.links] == ["eth0"]
    assert not found.addresses
    assert found.routes == (Route(2, "0.0.0.0/0", "192.0.2.1"),)


def test_lengths_that_cannot_be_are_refused() -> None:
    """Neither a message nor an attribute reaches past its bounds."""
    good = message(netlink.NEWLINK, b"body")
    assert list(netlink.messages(good)) == [(netlink.NEWLINK, b"body")]
    with pytest.raises(FormatError):
        list(netlink.messages(good[:-1]))
    with pytest.raises(FormatError):
        netlink.attributes(struct.pack("=HH", 3, 1))


def test_the_running_kernel_answers() -> None:
    """It knows its own links, and the way to an address of loopback leads over loopback."""
    netlink.read_network()
    assert netlink.look_up("127.0.0.1").index == socket.if_nametoindex("lo")
