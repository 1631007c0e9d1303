# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trials of targets on the network, against real server software in a second guest."""

from __future__ import annotations

from typing import Any

from crashlend.lab.servers import client
from crashlend.lab.servers.configs import BAD_CERTIFICATE_PORT, SINK, WRONG_HOST_PORT
from crashlend.lab.servers.keys import ADDRESSES, NAME
from crashlend.lab.spec import Command, Trial
from crashlend.sizes import MIB

LOCAL = "/dev/vdb"  # the guest has no udev, and so no names by label
# What the capture says of its address (a target's network has one family), and the servers of who came.
_LEASED = (
    r"lease of 192\.168\.77\.1\d\d obtained",
    r"network on \S+ \(\S+\): 192\.168\.77\.1\d\d/24",
)
_STATIC = r"network on \S+ \(\S+\): 192\.168\.77\.20/24"
_VLAN = r"network on vlan7 \(\S+\): 192\.168\.78\.20/24"
_STALLED = "nothing was (taken|written) for [0-9]+ s"


def _put(place: str, client: str = "") -> str:
    """Nginx's line of a dump that it took, from an address that begins so."""
    return rf'^{client}\S+ [^\n]*"PUT /{place}/\S*vmcore\S* HTTP/[0-9.]+" 20[14] '


def _net(targets: str, *flags: str, **more: Any) -> dict[str, Any]:
    """A guest as small as will do, that builds its own initramfs from what its network is."""
    words = ("load", "--target", targets, "--path", "/crash", *flags)
    return {
        "memory_bytes": 1536 * MIB,
        "cmdline": "crashkernel=100M",
        "lend_bytes": 512 * MIB,
        "poison": False,
        "scan": False,
        "build_in_guest": True,
        "timeout_seconds": 1200.0,
        "prepare": client.DHCP,
        "net": "serves",
        "commands": (Command(words),),
        **more,
    }


TARGETS_NET = (
    Trial(
        "net-nfs4-6.1",
        "a dump to an NFS 4.2 server, the address by DHCP",
        "6.1",
        _net(f"nfs://{ADDRESSES[0]}{SINK}", shows=(*_LEASED, r"is mounted, NFS version 4\.2")),
        quick=False,
    ),
    Trial(
        "net-nfs3-6.1",
        "a dump to an NFS 3 server, with production's static address",
        "6.1",
        _net(
            f"nfs://{NAME}{SINK}?vers=3",
            prepare=client.STATIC,
            shows=(_STATIC, "is mounted, NFS version 3"),
        ),
        quick=False,
    ),
    Trial(
        "net-vlan-6.1",
        "a dump by NFS 3 over a VLAN on a bond of two cards, one of which leads nowhere",
        "6.1",
        _net(
            f"nfs://192.168.78.1{SINK}?vers=3",
            prepare=client.STACKED,
            shows=(_VLAN, "is mounted, NFS version 3"),
        ),
        quick=False,
    ),
    Trial(
        "net-ssh-6.1",
        "a dump by OpenSSH with a key to a known host, found by name, over IPv6",
        "6.1",
        _net(
            f"ssh://root@{NAME}{SINK}",
            *client.KNOWN,
            shows=(r"network on \S+ \(\S+\): fd77::", "Accepted publickey for root from fd77::"),
        ),
        quick=False,
    ),
    Trial(
        "net-https-6.1",
        "a dump by HTTPS PUT with a token, to a server of a private authority",
        "6.1",
        _net(f"https://{NAME}/dumps/", *client.WEB, shows=(_put("dumps"),)),
        quick=False,
    ),
    Trial(
        "net-signed-6.1",
        "a dump to signed addresses of an object store that wants to know the length, over IPv6",
        "6.1",
        _net(client.SIGNED, shows=(r"network on \S+ \(\S+\): fd77::", _put("bucket", "fd77::"))),
        quick=False,
    ),
    Trial(
        "net-faults-6.1",
        "no DHCP answer, a server that is down, a wrong host key, a bad certificate: the dump is on "
        "the local disk, and the ladder has each reason",
        "6.1",
        _net(
            f"http://10.9.9.1/dumps/ nfs://192.168.77.99{SINK} "
            f"ssh://root@{NAME}:{WRONG_HOST_PORT}{SINK} "
            f"https://{NAME}:{BAD_CERTIFICATE_PORT}/dumps/ {LOCAL}",
            *client.KNOWN,
            *client.WEB[:2],
            *("--network-timeout", "15", "--target-timeout", "30"),
            net="fails",
            prepare=client.LOST_DHCP,
            net_reasons=(
                "no DHCP answer",
                "cannot mount",
                "Host key verification failed",
                "certificate",
            ),
        ),
        quick=False,
    ),
    Trial(
        "net-stalls-6.1",
        "SSH, HTTPS and NFS servers that stop answering in the middle: the dump is on the local disk, "
        "and the ladder has each reason",
        "6.1",
        _net(
            f"ssh://root@{NAME}{SINK} https://{NAME}/dumps/ nfs://{ADDRESSES[0]}{SINK} {LOCAL}",
            *client.KNOWN,
            *client.WEB,
            *("--stall-timeout", "30", "--target-timeout", "30", "--total-timeout", "900"),
            net="stalls",
            net_reasons=(
                f"{_STALLED}|not responding|timed out|: no answer$",
                f"{_STALLED}|Operation (too slow|timed out)",
                f"{_STALLED}|[Ii]nput/output error|timed out|is the disk full or failing",
            ),
        ),
        quick=False,
    ),
)
