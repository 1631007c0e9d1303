# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compares an estimate with the real capture of the same host (make estimate): writes docs/results.

The host is a guest of the lab. It takes a snapshot of itself, loads, and really crashes; then the
estimate gets what a snapshot of any host would give it: the facts, the kernel, the initramfs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from crashlend.cli.output import progress
from crashlend.config import Settings
from crashlend.facts import read_facts
from crashlend.hostfiles import open_host
from crashlend.lab.kernels import fetch
from crashlend.lab.packages import find_tool
from crashlend.lab.records import product_commit
from crashlend.lab.spec import Spec
from crashlend.lab.trial import run_trial
from crashlend.lab.twin.estimate import Options, estimate
from crashlend.lab.twin.run import snapshot_payload

SNAPSHOT = "/crash/host.tar.gz"
HOSTS = {
    "6.1": {"memory_bytes": 3 << 30, "cpus": 2, "cmdline": "crashkernel=512M,cma crashkernel=128M"},
    # more memory than the twin gets
    "7.3": {"memory_bytes": 6 << 30, "cpus": 4, "cmdline": "crashkernel=1G,cma crashkernel=160M"},
}


def main() -> None:
    """Crash the host, estimate it, write both and their difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.1", choices=sorted(HOSTS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    kernel = fetch(args.kernel, progress)
    with tempfile.TemporaryDirectory(prefix="crashlend-proof-") as name:
        directory = Path(name)
        spec = Spec(
            kernel=kernel,
            prepare=f"python3 -m crashlend snapshot --census /lab{SNAPSHOT}",
            timeout_seconds=900,
            **HOSTS[args.kernel],  # type: ignore[arg-type]
        )
        progress(f"the host: {spec.cmdline}")
        outcome = run_trial(spec, keep=directory / "host", say=progress)
        for check in outcome.checks:
            if not check.ok:
                raise SystemExit(f"the host's own crash: {check.name}: {check.detail}")
        disk = directory / "host/lab.ext4"
        snapshot, initramfs = directory / "host.tar.gz", directory / "initramfs"
        _dump(disk, SNAPSHOT, snapshot)
        _dump(disk, "/initramfs", initramfs)
        facts = read_facts(open_host(snapshot))
        payload = snapshot_payload(kernel, facts, initramfs.read_bytes(), progress)
        options = Options(jobs=args.jobs, timeout_seconds=900)
        found = estimate(facts, Settings(), payload, options, progress).to_json()
    crash = outcome.capture["crash_kernel"]
    real = {
        "kernel": kernel.release,
        "memory_bytes": spec.memory_bytes,
        "cpus": spec.cpus,
        "cmdline": spec.cmdline,
        "mem_total_bytes": crash["mem_total_bytes"],
        "peak_used_bytes": crash["peak_used_bytes"],
        "crash_kernel_bytes": sum(end - start for start, end in crash["ram_ranges"]),
        "vmcore_bytes": outcome.capture["vmcore"]["bytes"],
    }
    told = found["peak_used_bytes"]
    if told is None:
        raise SystemExit(f"no estimate: {found['why_not']}")
    difference = (told - real["peak_used_bytes"]) / real["peak_used_bytes"] * 100
    body = {
        "schema": 1,
        "name": args.output.stem,
        "commit": product_commit(),
        "difference_percent": round(difference, 1),
        "real": real,
        "estimate": found,
    }
    args.output.write_text(json.dumps(body, indent=1) + "\n")
    progress(f"the real capture used {real['peak_used_bytes']}, the estimate says {told}")


def _dump(disk: Path, path: str, to: Path) -> None:
    tool = find_tool("debugfs", "install the package e2fsprogs")
    subprocess.run([tool, "-R", f"dump {path} {to}", str(disk)], check=True, capture_output=True)


if __name__ == "__main__":
    main()
