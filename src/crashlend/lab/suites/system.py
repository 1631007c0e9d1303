# SPDX-License-Identifier: LGPL-2.1-or-later
"""An installed Debian with kdump-tools, crashed with crashlend in kexec's place and without.

The reservation is given back until only the payload and a small margin stay; the control has kexec-tools'
own kexec at that reservation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crashlend.lab.spec import LOST
from crashlend.lab.system.trial import RELOAD
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class SystemTrial:
    """``spec`` goes into a SystemSpec; ``expect`` is "" or ``lost`` (a control: no dump is saved).

    ``most_bytes``: the largest reservation that may be left where crashlend loads. ``utils``: kdump-utils'
    kdumpctl loads, from a clone of its repository.
    """

    name: str
    proves: str
    kernel: str = "6.1"
    spec: Mapping[str, Any] = field(default_factory=dict)
    expect: str = ""
    most_bytes: int = 0
    utils: bool = False


SHRINK = "[crashlend]\nshrink_on_load = yes\n"
SYSTEM = (
    SystemTrial(
        "system-6.1",
        "kdump-tools' service loads through crashlend kexec, gives the reservation back but for its "
        "payload, and its own initramfs boots the real root and saves its own dump",
        spec={
            "settings": SHRINK,
            "cmdline": "crashkernel=512M,cma crashkernel=256M",
            "more": RELOAD,
        },
        most_bytes=24 * MIB,
    ),
    SystemTrial(
        "system-control-6.1",
        "kexec-tools' kexec can't load the same payload into the reservation that system-6.1 leaves",
        spec={"settings": None, "defaults": "", "cmdline": "crashkernel=19M"},
        expect=LOST,
    ),
    SystemTrial(
        "system-utils-6.1",
        "kdumpctl of kdump-utils starts, reloads, stops, starts and restarts through crashlend kexec by "
        "kexec_file_load; what it has loaded saves its dump",
        spec={"cmdline": "crashkernel=512M,cma crashkernel=256M"},
        most_bytes=256 * MIB,
        utils=True,
    ),
)
