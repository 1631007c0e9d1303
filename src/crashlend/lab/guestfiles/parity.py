# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in production (argument "production") and in the crash kernel: what each has of its machine.

EFI variables are written and read back through the runtime services; the crash kernel also reads
the one that production wrote. Python 3.9.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

EFI = Path("/sys/firmware/efi")
VARIABLES = EFI / "efivars"
GUID = "7b0e9a42-5f0c-4f0e-9c39-63726c656e64"
ATTRIBUTES = (7).to_bytes(4, "little")  # kept in flash, for boot and runtime services
DMI = ("sys_vendor", "product_name", "bios_vendor", "bios_version")
PORT = "/dev/ttyS1"


def variable(name: str) -> Path:
    """The file of one of our own variables."""
    return VARIABLES / f"{name}-{GUID}"


def mount_variables() -> str:
    """Make efivarfs be there; why it is not, or nothing."""
    if not VARIABLES.is_dir():
        return f"no {VARIABLES}"
    if not any(VARIABLES.iterdir()):
        # a module of the running kernel, from the root disk of both
        subprocess.run(["modprobe", "efivarfs"], check=False)
        done = subprocess.run(
            ["mount", "-t", "efivarfs", "efivarfs", str(VARIABLES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.stdout.decode(errors="replace").strip()
    return ""


def read(path: Path) -> str:
    """A file's text, or why there is none, in brackets."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError as error:
        return f"({error.strerror})"


def variables(kernel: str) -> dict[str, object]:
    """What came of reading and writing variables."""
    out: dict[str, object] = {
        "problem": mount_variables(),
        "count": 0,
        "productions": "",
        "own": "",
    }
    if out["problem"]:
        return out
    try:
        out["count"] = len(os.listdir(VARIABLES))
        if kernel != "production":
            out["productions"] = variable("CrashlendProduction").read_bytes()[4:].decode()
        own = variable(f"Crashlend{kernel.capitalize()}")
        own.write_bytes(ATTRIBUTES + f"written by {kernel}".encode())
        out["own"] = own.read_bytes()[4:].decode()
    except OSError as error:
        out["problem"] = str(error)
    # the hook must be able to take /sys away
    subprocess.run(["umount", str(VARIABLES)], check=False)
    return out


def main() -> None:
    """Report one event on the second serial port."""
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"  # a hook's is the initramfs's own
    kernel = sys.argv[1] if len(sys.argv) > 1 else "crash"
    event = {
        "event": f"parity_{kernel}",
        "efi": EFI.is_dir(),
        "variables": variables(kernel) if EFI.is_dir() else None,
        "runtime_regions": len(list((EFI / "runtime-map").glob("[0-9]*"))),
        "dmi": {name: read(Path("/sys/class/dmi/id", name)) for name in DMI},
        "reboot_type": read(Path("/sys/kernel/reboot/type")),
        "cpus_online": os.sysconf("SC_NPROCESSORS_ONLN"),
        "mem_total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "cmdline": read(Path("/proc/cmdline")),
    }
    with open(PORT, "w", encoding="ascii") as port:
        port.write("\n" + json.dumps(event) + "\n")


main()
