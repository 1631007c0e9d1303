# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is kept of a trial where many are run: figures for tables, as plain JSON without paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crashlend.lab.qemu import LostVmError

if TYPE_CHECKING:
    from crashlend.errors import CrashlendError
    from crashlend.lab.outcome import Outcome


def figures(outcome: Outcome) -> dict[str, Any]:
    """What a table needs of a trial whose machine lived. Sizes in bytes; None: it never told."""
    result = outcome.to_json()
    return {
        "checks": f"{sum(c.ok for c in outcome.checks)} of {len(outcome.checks)}",
        "release": outcome.spec.kernel.release,
        "timed_out": outcome.report.timed_out,
        "used_lender": result["lender"],
        "used_syscall": result["syscall"],
        "lent_bytes": result["lent"]["bytes"],
        "reserved_bytes": result["reservation"]["after_bytes"],
        "mem_total_bytes": result["crash_kernel"]["mem_total_bytes"],
        "peak_used_bytes": result["crash_kernel"]["peak_used_bytes"],
        "vmcore_bytes": result["vmcore"]["bytes"],
        "panic_to_saved_seconds": result["seconds"]["panic_to_saved"],
    }


def void(error: CrashlendError) -> dict[str, Any]:
    """What is kept where nothing can be said of the product."""
    return {"why": str(error), "machine_lost": isinstance(error, LostVmError)}
