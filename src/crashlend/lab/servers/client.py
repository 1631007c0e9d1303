# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest that crashes, as a host on the lab's network: its set-up, its keys, its targets."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from crashlend.lab.servers.configs import SIGNATURE, TOKEN, WRONG_HOST_PORT
from crashlend.lab.servers.guest import CLIENT_MAC, SILENT_MAC
from crashlend.lab.servers.keys import ADDRESSES, NAME, lab_keys

if TYPE_CHECKING:
    from pathlib import Path

    from crashlend.lab.packages import Say

DIRECTORY = "net"  # on the guest's lab disk


class Net(NamedTuple):
    """A set-up of the lab's network: which servers stall, and where the dump must end up."""

    stall: tuple[str, ...] = ()
    on_server: bool = True


# The values of Spec.net.
NETS = {
    "serves": Net(),
    "fails": Net(on_server=False),
    "stalls": Net(("ssh", "http", "nfs"), on_server=False),
}
KNOWN = ("--ssh-key", f"/lab/{DIRECTORY}/key", "--ssh-known-hosts", f"/lab/{DIRECTORY}/known_hosts")
WEB = ("--http-ca", f"/lab/{DIRECTORY}/ca.pem", "--http-headers", f"/lab/{DIRECTORY}/headers")
SIGNED = f"url:/lab/{DIRECTORY}/signed"

# What a DHCP client does with a lease, lifetimes included (as dhclient-script does).
_LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface" valid_lft "$lease" preferred_lft "$lease"
for gateway in $router; do ip route add default via "$gateway" dev "$interface"; done
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
"""
_BEGIN = f"""
set -e
modprobe virtio_net
for at in /sys/class/net/*; do
    read -r mac <"$at/address"
    case $mac in
        {CLIENT_MAC}) card=${{at##*/}} ;;
        {SILENT_MAC}) silent=${{at##*/}} ;;
    esac
done
ip link set lo up
ip link set $silent up
ip link set $card up
echo "the lab's card is $card, the silent one $silent"
# without it the initramfs is compressed by gzip: xz takes minutes under emulation
rm -f /boot/config-*
"""
# The servers may still be starting.
DHCP = (
    _BEGIN
    + f"""
chmod 755 /lab/{DIRECTORY}/lease
busybox udhcpc -f -q -n -t 100 -T 2 -i $card -s /lab/{DIRECTORY}/lease
until ip -6 addr show dev $card scope global | grep -q fd77; do sleep 1; done
ip addr show
"""
)
STATIC = (
    _BEGIN
    + f"""
ip addr add 192.168.77.20/24 dev $card
ip route add default via {ADDRESSES[0]} dev $card
echo "{ADDRESSES[0]} {NAME}" >>/etc/hosts
"""
)
# A VLAN over a bond of both cards, one of which leads nowhere.
# The module makes bond0 by itself as it is loaded.
STACKED = (
    _BEGIN
    + """
ip link set $silent down
ip link set $card down
ip link add bond1 type bond mode active-backup miimon 100
ip link set $card master bond1
ip link set $silent master bond1
ip link set bond1 up
ip link set $card up
echo $card >/sys/class/net/bond1/bonding/active_slave
ip link add link bond1 name bond1.7 type vlan id 7
ip link set bond1.7 up
ip addr add 192.168.78.20/24 dev bond1.7
ip addr show
"""
)
# An address of a DHCP server that will not be there any more.
LOST_DHCP = (
    DHCP
    + """
ip addr add 10.9.9.9/24 dev $silent valid_lft 3600 preferred_lft 3600
"""
)


def lay_out(tree: Path, say: Say) -> None:
    """Put what the client has of the servers' secrets onto its lab disk."""
    keys, place = lab_keys(say), tree / DIRECTORY
    place.mkdir()
    shutil.copy(keys / "client", place / "key")
    shutil.copy(keys / "ca.pem", place / "ca.pem")
    host = " ".join((keys / "host.pub").read_text().split()[:2])
    names = [NAME, *ADDRESSES]
    names += [f"[{name}]:{WRONG_HOST_PORT}" for name in names]
    (place / "known_hosts").write_text("".join(f"{name} {host}\n" for name in names))
    (place / "headers").write_text(f"Authorization: Bearer {TOKEN}\n")
    (place / "signed").write_text(
        f"http://[{ADDRESSES[1]}]/bucket/{{name}}/{{file}}?signature={SIGNATURE}\n"
    )
    (place / "lease").write_text(_LEASE)
    for name in ("key", "headers", "signed"):
        (place / name).chmod(0o600)
