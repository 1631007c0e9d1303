# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boots the cases and keeps what each guest told, one file per boot, so that a run can go on."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Callable

from crashlend.errors import CrashlendError
from crashlend.lab.agree.cases import HOSTS, GuestHost
from crashlend.lab.agree.data import Kept, Result, digest, host_record
from crashlend.lab.observation import Observation
from crashlend.lab.observe import OWN_WORDS, observe
from crashlend.lab.packages import silent, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from crashlend.lab.agree.cases import Case
    from crashlend.lab.kernels import Kernel
    from crashlend.lab.packages import Say

BASELINE = "host"  # how the names of boots without crashkernel= begin


@dataclass(frozen=True)
class Boot:
    """One boot of a kernel on a host of the table: a case's, or the host's baseline."""

    name: str
    kernel: str
    host: GuestHost
    words: str = ""

    @property
    def line(self) -> str:
        """The words after the lab's own: the host's, then the case's."""
        return f"{self.host.words} {self.words}".strip(" ")

    @property
    def cmdline(self) -> bytes:
        """The whole command line. For the EFI stub QEMU adds a word that names the initramfs."""
        added = " initrd=initrd" if self.host.guest.firmware == "uefi" else ""
        return (f"{OWN_WORDS} {self.line}".rstrip(" ") + added).encode()


def boot_of(case: Case) -> Boot:
    """The boot of a case."""
    return Boot(case.name, case.kernel, HOSTS[case.host], case.words)


def baseline_of(case: Case) -> Boot:
    """The boot that tells what a host knows before it has any ``crashkernel=``."""
    return Boot(f"{BASELINE}-{case.host}-{case.kernel}", case.kernel, HOSTS[case.host])


def boots_of(cases: Iterable[Case]) -> tuple[Boot, ...]:
    """All boots of some cases: each case's, after the baseline of its host."""
    found: dict[str, Boot] = {}
    for case in cases:
        for boot in (baseline_of(case), boot_of(case)):
            found.setdefault(boot.name, boot)
    return tuple(found.values())


def stamp(boot: Boot, kernel: Kernel) -> str:
    """A digest of all that decides what a boot tells."""
    what = [asdict(boot), OWN_WORDS, kernel.release, kernel.version]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    digest.update(files("crashlend.lab").joinpath("guestfiles/observe").read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Recorder:
    """Boots into ``directory``, ``jobs`` at a time. ``kernels`` by name."""

    directory: Path
    kernels: Mapping[str, Kernel]
    jobs: int = 1
    say: Say = silent
    run: Callable[..., Observation] = observe
    stop: threading.Event = field(default_factory=threading.Event)

    def load(self, boot: Boot) -> Observation | None:
        """What was told before, by exactly this boot; None where it is to be booted."""
        try:
            kept = json.loads(self._path(boot).read_text())
            if kept["stamp"] != stamp(boot, self.kernels[boot.kernel]):
                return None
            return Observation.from_json(kept["observation"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def record(self, boots: Sequence[Boot]) -> dict[str, str]:
        """Boot them all; why there is no observation, by name, of those that failed."""
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(max(1, self.jobs)) as pool:
            futures = {pool.submit(self._one, boot): boot for boot in boots}
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    boot = futures[future]
                    trouble, seconds = future.result()
                    words = trouble or f"{seconds:.1f} s"
                    self.say(f"[{number}/{len(boots)}] {boot.name}: {words}")
                    if trouble:
                        failed[boot.name] = trouble
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return failed

    def _one(self, boot: Boot) -> tuple[str, float]:
        if self.stop.is_set():
            return "interrupted", 0.0
        kernel = self.kernels[boot.kernel]
        try:
            seen = self.run(kernel, boot.line, boot.host.memory_bytes, guest=boot.host.guest)
        except CrashlendError as error:
            return str(error), 0.0
        if not seen.log_complete:
            return "its log has lost its beginning", seen.seconds
        if seen.cmdline != boot.cmdline:
            return f"its command line is {seen.cmdline!r}", seen.seconds
        kept = {"stamp": stamp(boot, kernel), "observation": seen.to_json()}
        write_atomically(self._path(boot), json.dumps(kept).encode())
        return "", seen.seconds

    def _path(self, boot: Boot) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / f"{boot.name}.json"


def keep(recorder: Recorder, cases: Sequence[Case], qemu: str) -> Kept:
    """What is compared, of all cases that were observed on a host that was."""
    hosts, results = {}, []
    for case in cases:
        baseline, boot = baseline_of(case), boot_of(case)
        before, seen = recorder.load(baseline), recorder.load(boot)
        if before is None or seen is None:
            continue
        hosts[baseline.name] = host_record(case.host, case.kernel, before)
        row = (case.name, case.kernel, case.host, case.words, case.shows)
        results.append(Result(*row, seen.cmdline.decode("utf-8", "replace"), digest(seen)))
    return Kept({"qemu": qemu}, tuple(hosts.values()), tuple(results))
