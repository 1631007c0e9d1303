# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own account of its network: links, addresses and routes, over rtnetlink(7).

Not /proc/net: it lacks how long addresses are valid, permanent hardware addresses, and what the
routing policy makes of it all. Layouts: include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Optional

from crashlend.errors import CrashlendError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWLINK, GETLINK, NEWADDR, GETADDR, NEWROUTE, GETROUTE = 16, 18, 20, 22, 24, 26
_ERROR, _DONE = 2, 3
_F_REQUEST, _F_DUMP = 1, 0x300
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
_CACHEINFO = struct.Struct("=IIII")  # ifa_cacheinfo: preferred, valid, created, updated
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_PERM_ADDRESS = 10, 18, 54
_INFO_KIND, _INFO_DATA, _VLAN_ID = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 6, 8
_IFA_F_TEMPORARY, _IFA_F_PERMANENT = 0x01, 0x80
_IFA_F_UNUSABLE = 0x08 | 0x20 | 0x40  # DAD failed, deprecated, tentative
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_RT_TABLE_MAIN = 254
_RTN_UNICAST, _RTN_LOCAL = 1, 2
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_RECEIVE_BYTES = 1 << 18
_TIMEOUT_SECONDS = 5.0

# (type, body, dump) -> the bodies of the answers
Ask = Callable[[int, bytes, bool], "list[bytes]"]


@dataclass(frozen=True)
class Link:
    """A network interface. ``permanent`` is the hardware's own address, ``lower`` what it is on."""

    index: int
    name: str
    mac: str
    permanent: str = ""
    mtu: int = 1500
    kind: str = ""  # "" for hardware, else vlan, bond, bridge, …
    lower: int = 0
    master: int = 0
    vlan: int = 0


@dataclass(frozen=True)
class Address:
    """An address of an interface; ``valid_seconds`` is None where it does not run out."""

    index: int
    address: str
    prefix: int
    valid_seconds: Optional[int] = None
    temporary: bool = False

    @property
    def family(self) -> int:
        return ipaddress.ip_address(self.address).version


@dataclass(frozen=True)
class Route:
    """Out of which interface: ``destination`` is ADDRESS/PREFIX ("0.0.0.0/0" for all); ``gateway`` is "" where there is none."""

    index: int
    destination: str
    gateway: str
    source: str = ""


@dataclass(frozen=True)
class Network:
    """Everything that the kernel says, but loopback's."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]  # of the main table, unicast


def kernel(request: int, body: bytes, dump: bool) -> list[bytes]:
    """Ask the running kernel. Raises CrashlendError with its error; OSError text as it gives it."""
    what = "cannot ask the kernel about the network"
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asked:
            asked.settimeout(_TIMEOUT_SECONDS)
            flags = _F_REQUEST | (_F_DUMP if dump else 0)
            header = _HEADER.pack(_HEADER.size + len(body), request, flags, 1, 0)
            asked.sendto(header + body, (0, 0))
            return _collect(asked, dump, what)
    except OSError as error:
        raise CrashlendError(what, error.strerror or str(error)) from error


def _collect(asked: socket.socket, dump: bool, what: str) -> list[bytes]:
    answers: list[bytes] = []
    while True:
        for kind, body in messages(asked.recv(_RECEIVE_BYTES)):
            if kind == _DONE:
                return answers
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", body)
                if number:
                    raise OSError(-number, os.strerror(-number))
                return answers
            answers.append(body)
        if not dump:
            return answers


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each netlink message. Raises FormatError for lengths that cannot be."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise FormatError("netlink message", f"length {length} at {at} of {len(data)}")
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message by their type. Raises FormatError likewise."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            raise FormatError("netlink attribute", f"length {length} at {at} of {len(data)}")
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def parse_link(body: bytes) -> Link:
    """An RTM_NEWLINK message."""
    _, _, index, _, _ = _LINK.unpack_from(body)
    have = attributes(body[_LINK.size :])
    info = attributes(have.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_INFO_KIND, b""))
    data = attributes(info.get(_INFO_DATA, b"")) if kind == "vlan" else {}
    return Link(
        index,
        _text(have.get(_IFLA_IFNAME, b"")),
        _mac(have.get(_IFLA_ADDRESS, b"")),
        _mac(have.get(_IFLA_PERM_ADDRESS, b"")),  # since Linux 5.6
        _number(have.get(_IFLA_MTU, b"")) or 1500,
        kind,
        _number(have.get(_IFLA_LINK, b"")),
        _number(have.get(_IFLA_MASTER, b"")),
        _number(data.get(_VLAN_ID, b"")),
    )


def parse_address(body: bytes) -> Optional[Address]:
    """An RTM_NEWADDR message; None for addresses that are not (yet, any more) usable."""
    family, prefix, flags, _, index = _ADDRESS.unpack_from(body)
    have = attributes(body[_ADDRESS.size :])
    raw = have.get(_IFA_LOCAL) or have.get(_IFA_ADDRESS, b"")
    flags = _number(have.get(_IFA_FLAGS, b"")) or flags
    if family not in FAMILIES.values() or len(raw) not in (4, 16):
        return None
    if family == socket.AF_INET6 and flags & _IFA_F_UNUSABLE:
        return None
    valid: Optional[int] = None
    if not flags & _IFA_F_PERMANENT and len(have.get(_IFA_CACHEINFO, b"")) >= _CACHEINFO.size:
        valid = _CACHEINFO.unpack_from(have[_IFA_CACHEINFO])[1]
    # for IPv4 the same bit says "secondary"
    temporary = family == socket.AF_INET6 and bool(flags & _IFA_F_TEMPORARY)
    return Address(index, str(ipaddress.ip_address(raw)), prefix, valid, temporary)


def parse_route(body: bytes) -> Optional[Route]:
    """An RTM_NEWROUTE message; None for what leads out of no single interface."""
    family, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
    have = attributes(body[_ROUTE.size :])
    if (
        family not in FAMILIES.values()
        or kind not in (_RTN_UNICAST, _RTN_LOCAL)
        or _RTA_OIF not in have
    ):
        return None
    everything = "0.0.0.0" if family == socket.AF_INET else "::"
    destination = _ip(have.get(_RTA_DST, b"")) or everything
    gateway = _ip(have.get(_RTA_GATEWAY, b""))
    if not gateway and _RTA_VIA in have:
        gateway = _ip(have[_RTA_VIA][2:])  # an IPv4 route by way of an IPv6 router
    return Route(
        _number(have[_RTA_OIF]),
        f"{destination}/{prefix}",
        gateway,
        _ip(have.get(_RTA_PREFSRC, b"")),
    )


def read_network(ask: Ask = kernel) -> Network:
    """Links, addresses and routes of the running kernel."""
    links = [parse_link(b) for b in ask(GETLINK, _LINK.pack(0, 0, 0, 0, 0), True)]
    addresses = [parse_address(b) for b in ask(GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0), True)]
    routes: list[Optional[Route]] = []
    for family in FAMILIES.values():
        for body in ask(GETROUTE, _ROUTE.pack(family, *(0,) * 7, 0), True):
            if _ROUTE.unpack_from(body)[4] == _RT_TABLE_MAIN:
                routes.append(parse_route(body))
    return Network(
        tuple(link for link in links if link.name != "lo"),
        tuple(a for a in addresses if a and not ipaddress.ip_address(a.address).is_loopback),
        tuple(route for route in routes if route),
    )


def look_up(address: str, ask: Ask = kernel) -> Route:
    """Which way the kernel would send a packet to ``address``. CrashlendError where it has none."""
    ip = ipaddress.ip_address(address)
    raw = ip.packed
    body = _ROUTE.pack(FAMILIES[ip.version], len(raw) * 8, *(0,) * 6, 0)
    body += struct.pack("=HH", 4 + len(raw), _RTA_DST) + raw
    try:
        found = [route for route in map(parse_route, ask(GETROUTE, body, False)) if route]
    except CrashlendError as error:
        raise CrashlendError(f"cannot reach {address}", error.why, hint=_NO_ROUTE) from error
    if not found:
        raise CrashlendError(
            f"cannot reach {address}", "no route leads out of this host", hint=_NO_ROUTE
        )
    return found[0]


_NO_ROUTE = "the network must be up when the crash kernel is loaded: see ip route get"


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _mac(raw: bytes) -> str:
    return raw.hex(":") if len(raw) == 6 and any(raw) else ""


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder) if len(raw) in (2, 4) else 0


def _ip(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw)) if len(raw) in (4, 16) else ""
