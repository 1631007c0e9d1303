# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest: loads, fills memory with patterns, crashes. Python 3.9.

Reports one JSON object per line on the second serial port.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
import tty
from array import array
from pathlib import Path
from typing import Any

import late
import loads
import tasks

PAGE = 4096
CHUNK = 32 << 20
PFN_MASK = (1 << 55) - 1
# what user space leaves in lent memory, and elsewhere: no page of a kernel begins so
IN_LENT, ELSEWHERE = 0xC7, 0x9E
KEEP_AVAILABLE = 220 << 20
CRASH_SECONDS = 120
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # EFI_GLOBAL_VARIABLE, UEFI 2.10, 3.3
BLOCKS = "/sys/devices/system/memory"


def report(event: str, **values: object) -> None:
    """Send one event to the lab."""
    with open("/dev/ttyS1", "w", encoding="ascii") as port:
        # UEFI takes this port for a console, too, and leaves half a line there
        port.write("\n" + json.dumps({"event": event, **values}) + "\n")


def ask_host(words: list[str]) -> dict[str, object]:
    """Have the lab do something from outside (lab/host.py); its answer: "return" or "error"."""
    fd = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(fd)  # no echo: the lab would hear its own answer
        report("host", ask=words)
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(fd, 4096)
    finally:
        os.close(fd)
    return dict(json.loads(answer))


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def block_states(where: Path = Path(BLOCKS)) -> dict[str, int]:
    """How many memory blocks are in which state: offline, or online in which zone."""
    counts: dict[str, int] = {}
    for block in where.glob("memory[0-9]*"):
        state = (block / "state").read_text().strip()
        if state == "online":
            state = ((block / "valid_zones").read_text().split() or ["none"])[0]
        counts[state] = counts.get(state, 0) + 1
    return counts


def node_states() -> dict[str, tuple[int, dict[str, int]]]:
    """Of each NUMA node: its memory in bytes, and how many of its blocks are in which state."""
    nodes = {}
    for node in Path("/sys/devices/system/node").glob("node[0-9]*"):
        words = (node / "meminfo").read_text().split("MemTotal:")[1].split()
        nodes[node.name[4:]] = (int(words[0]) * 1024, block_states(node))
    return nodes


def cpus_by_node() -> list[set[int]]:
    """The CPUs of each NUMA node that has any; one set where the kernel knows no nodes."""
    found = []
    for node in sorted(Path("/sys/devices/system/node").glob("node[0-9]*")):
        cpus = {int(cpu.name[3:]) for cpu in node.glob("cpu[0-9]*")}
        found += [cpus] if cpus else []
    return found or [os.sched_getaffinity(0)]


def crash_ranges() -> list[list[int]]:
    """The reservation as it is now, half-open."""
    lines = re.findall(r"(\w+)-(\w+) : Crash kernel", Path("/proc/iomem").read_text())
    return [[int(start, 16), int(end, 16) + 1] for start, end in lines]


def secure_boot() -> dict[str, object]:
    """What firmware and the kernel say of Secure Boot, each in its own words; None: nothing."""
    variable = Path(f"/sys/firmware/efi/efivars/SecureBoot-{EFI_GLOBAL}")
    lockdown = Path("/sys/kernel/security/lockdown")
    log = subprocess.run(["dmesg"], stdout=subprocess.PIPE, check=False).stdout.decode(
        "ascii", "replace"
    )
    said = re.search(r"secureboot: .*", log)
    return {
        # four bytes of attributes, then the value
        "variable": variable.read_bytes()[4] if variable.exists() else None,
        "kernel": said.group(0) if said else None,
        "lockdown": lockdown.read_text().strip() if lockdown.exists() else None,
    }


def shape() -> dict[str, object]:
    """What kind of host this is."""
    flags = re.search(r"(?m)^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text())
    return {
        "efi": Path("/sys/firmware/efi").is_dir(),
        "acpi": Path("/sys/firmware/acpi/tables").is_dir(),
        "host_bridge": Path("/sys/bus/pci/devices/0000:00:00.0/device").read_text().strip(),
        "cpus": os.cpu_count(),
        "nodes": node_states(),
        "crash_ranges": crash_ranges(),
        "block_bytes": int(Path(f"{BLOCKS}/block_size_bytes").read_text(), 16),
        "secure": secure_boot(),
        "la57": flags is not None and "la57" in flags.group(1).split(),
    }


def run_command(program: str, words: list[str], fault: str = "") -> dict[str, object]:
    """Run crashlend or kexec as a user would; the answer is JSON or text.

    ``fault``: what strikes crashlend meanwhile, as faulty.py has it.

    ``said`` are the lines of stderr, each with its time in seconds from the start.
    """
    command = [sys.executable, "-m", "crashlend"] if program == "crashlend" else [program]
    if fault:
        command = [sys.executable, "/lab/faulty.py", fault]
    before = meminfo()["MemAvailable"]
    said = []
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(
            [*command, *words], stdout=out, stderr=subprocess.PIPE, text=True
        ) as process:
            for line in process.stderr or ():
                said.append((round(time.monotonic() - began, 3), line.rstrip("\n")))
        seconds = round(time.monotonic() - began, 3)
        out.seek(0)
        printed = out.read()
    stderr = "".join(f"{line}\n" for _, line in said)
    sys.stderr.write(stderr)
    answer: object = None
    if printed:
        try:
            answer = json.loads(printed)
        except ValueError:
            answer = printed[-2000:]
    return {
        "program": program,
        "argv": words,
        "exit": process.returncode,
        "stderr": stderr[-2000:],
        "said": said[-100:],
        "answer": answer,
        "seconds": seconds,
        "blocks": block_states(),
        "mem_total": meminfo()["MemTotal"],
        "available": [before, meminfo()["MemAvailable"]],
        "crash_loaded": Path("/sys/kernel/kexec_crash_loaded").read_text().strip() == "1",
    }


def prepare(command: str) -> bool:
    """Bring the guest into the state that the trial is about; whether that worked."""
    done = subprocess.run(
        ["/bin/sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    words = done.stdout.decode("ascii", "replace")[-20000:]
    report("prepared", exit=done.returncode, output=words, mem_total=meminfo()["MemTotal"])
    return done.returncode == 0


class Filler:
    """Memory that production is made to use: a file in the page cache, then anonymous memory."""

    def __init__(self) -> None:
        self.areas: list[mmap.mmap] = []

    def fill(self, share: float, cache_bytes: int) -> dict[str, object]:
        """Leave no more than 1 - ``share`` of MemTotal free, ``cache_bytes`` of the rest a file's."""
        piece = os.urandom(1 << 20)
        with open("/lab/filler", "wb") as file:
            for _ in range(cache_bytes >> 20):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        memory = meminfo()
        while memory["MemFree"] - CHUNK > (1 - share) * memory["MemTotal"]:
            # private: a shared mapping would be tmpfs, and count as page cache
            area = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(area)), 1, CHUNK)
            self.areas.append(area)
            memory = meminfo()
        names = ("MemTotal", "MemFree", "MemAvailable", "AnonPages", "Cached")
        return {name: memory[name] for name in names}


class Chunk:
    """One stretch of anonymous memory, all of it touched, and where its pages lay last."""

    def __init__(self) -> None:
        self.area = mmap.mmap(-1, CHUNK)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        ctypes.memset(self.address, ELSEWHERE, CHUNK)
        self.frames = array("Q", bytes(CHUNK // PAGE * 8))
        self.lent_pages = 0


def runs(now: list[bool], before: list[bool]) -> list[tuple[int, int, bool]]:
    """Stretches of pages that changed sides: (first, last + 1, in lent memory now)."""
    out: list[tuple[int, int, bool]] = []
    for index, (new, old) in enumerate(zip(now, before)):
        if new == old:
            continue
        if out and out[-1][1] == index and out[-1][2] == new:
            out[-1] = (out[-1][0], index + 1, new)
        else:
            out.append((index, index + 1, new))
    return out


class Poison:
    """Memory of this process: pages in lent memory hold one pattern, all others another."""

    def __init__(self, lent: list[list[int]]) -> None:
        self.lent = [(start // PAGE, end // PAGE) for start, end in lent]
        self.chunks: list[Chunk] = []
        self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)

    def lent_mask(self, frames: array[int]) -> list[bool]:
        """Which of the pages lie in lent memory."""
        mask = [False] * len(frames)
        for start, end in self.lent:
            mask = [was or start <= (f & PFN_MASK) < end for was, f in zip(mask, frames)]
        return mask

    def mark(self, chunk: Chunk) -> bool:
        """Give every page of the chunk the pattern of where it lies now; whether any had moved."""
        offset = chunk.address // PAGE * 8
        now = array("Q", os.pread(self.pagemap, CHUNK // PAGE * 8, offset))
        if now == chunk.frames:
            return False
        inside = self.lent_mask(now)
        for first, last, is_lent in runs(inside, self.lent_mask(chunk.frames)):
            pattern = IN_LENT if is_lent else ELSEWHERE
            ctypes.memset(chunk.address + first * PAGE, pattern, (last - first) * PAGE)
        chunk.lent_pages = sum(inside)
        chunk.frames = now
        return True

    def settle(self) -> dict[str, int]:
        """Mark all chunks until no page has moved meanwhile, and count."""
        for _ in range(5):
            moved = [self.mark(chunk) for chunk in self.chunks]  # every one, not until the first
            if not any(moved):
                break
        inside = sum(chunk.lent_pages for chunk in self.chunks)
        pages = len(self.chunks) * CHUNK // PAGE
        return {"in_lent_pages": inside, "elsewhere_pages": pages - inside}

    def fill(self) -> dict[str, int]:
        """Fill lent memory as far as user space gets, and at least 64 MiB of the rest."""
        lent_pages = sum(end - start for start, end in self.lent)
        inside = outside = 0
        everywhere = os.sched_getaffinity(0)
        near = itertools.cycle(cpus_by_node())
        while meminfo()["MemAvailable"] > KEEP_AVAILABLE + CHUNK:
            # in turn from each node: memory of a distant one is taken when the near one has no more
            os.sched_setaffinity(0, next(near))
            self.chunks.append(Chunk())
            self.mark(self.chunks[-1])
            gained = self.chunks[-1].lent_pages
            inside, outside = inside + gained, outside + CHUNK // PAGE - gained
            # the last per cents are the kernel's own spare pages: no use to fill all of RAM for them
            if inside >= lent_pages * 0.9 and outside * PAGE >= 64 << 20 and not gained:
                break
            if not lent_pages and outside * PAGE >= 256 << 20:
                break
        os.sched_setaffinity(0, everywhere)
        return self.settle()


def crash(how: dict[str, Any]) -> str:
    """End this kernel, as crashes.py says how; returns why it lives on, if it does."""
    if how["cpu"] is not None:
        os.sched_setaffinity(0, {how["cpu"]})
    if not how["script"] and not how["host"]:
        # one write, from this very CPU
        fd = os.open("/proc/sysrq-trigger", os.O_WRONLY)
        os.write(fd, b"c")
    if how["script"]:
        done = subprocess.run(["/bin/sh", "-c", how["script"]], check=False)
        if done.returncode != 0:
            return f"the trigger ended with {done.returncode}"
    if how["host"]:
        told = ask_host(how["host"])
        if "error" in told:
            return str(told["error"])
    time.sleep(CRASH_SECONDS)  # watchdogs take their time
    return f"nothing happened in {CRASH_SECONDS} s"


def main() -> None:
    """Do what /lab/job.json says."""
    job = json.loads(Path("/lab/job.json").read_text())
    report(
        "booted",
        uptime=float(Path("/proc/uptime").read_text().split()[0]),
        release=os.uname().release,
        python=sys.version.split()[0],
        mem_total=meminfo()["MemTotal"],
        cmdline=Path("/proc/cmdline").read_text().strip(),
        blocks=block_states(),
        **shape(),
    )
    if job["prepare"] and not prepare(job["prepare"]):
        report("failed", stage="prepare")
        return
    if job["kill"]:
        done = subprocess.run([sys.executable, "/lab/kill.py"], check=False)
        if done.returncode != 0:
            report("failed", stage="kill")
            return
    lent: list[list[int]] = []
    filler = Filler()
    working = loads.Loads()
    for command in job["commands"]:
        words = command["argv"]
        if command["program"] == "agent" and words[0] == "work":
            working.take(*words[1:])
            continue
        if command["program"] == "agent":
            what, share, cache_bytes = words
            report(what, **filler.fill(float(share), int(cache_bytes)))
            continue
        if command["program"] == "host":
            told = ask_host(words)
            if "error" in told:
                report("failed", stage=" ".join(words), why=told["error"])
                return
            continue
        result = run_command(command["program"], words, command["fault"])
        expected = {"expected": command["exit"], "says": command["says"]}
        report("command", fault=command["fault"], **expected, **result)
        if result["exit"] != command["exit"]:
            report("failed", stage=words[0])
            return
        answer = result["answer"]
        if words[0] in ("load", "reload") and isinstance(answer, dict) and "plan" in answer:
            lent = answer["plan"]["lent"]
        elif words[0] == "unload":
            lent = []
    if job["probe"]:
        subprocess.run([sys.executable, "/lab/probe.py", *job["commands"][-1]["argv"]], check=False)
    report(
        "loaded",
        mem_total=meminfo()["MemTotal"],
        cpus_online=os.sysconf("SC_NPROCESSORS_ONLN"),
        nodes=node_states(),
        crash_ranges=crash_ranges(),
    )
    if job["crash"] is None:
        return
    poison = Poison(lent)
    if job["poison"]:
        report("filled", **poison.fill())
    os.sync()
    for result in working.go_on():
        report("working", **result, **loads.use_of(lent))
    if job["poison"]:
        # the last look: what moved since gets the pattern of its new place
        report("poisoned", **poison.settle())
    dma = late.prepare(job["late"], lent)
    if dma is not None:
        report("in_flight", **dma.start())
    if job.get("analyze"):
        report("kernel", **tasks.kernel())
    report("crashing")
    time.sleep(0.2)
    if dma is not None:
        dma.fire()
    report("failed", stage="crash", why=crash(job["crash"]))


if __name__ == "__main__":
    main()
