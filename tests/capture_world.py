# SPDX-License-Identifier: LGPL-2.1-or-later
"""A world for the capture's ladder: targets that are directories, a makedumpfile that does as told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from capture_shell import executable, shell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOG = "[    1.0] before\n[    2.0] Kernel panic - not syncing: a test\n"
# Takes one word per run from the file "queue"; its arguments go to the file "calls".
MAKEDUMPFILE = r"""
for out; do :; done
case $1 in
  -v) echo 'makedumpfile: version 1.7.2 (released on 20 Oct 2022)' && exit ;;
  --dump-dmesg) cp dmesg "$out" && exit ;;
  --dry-run) echo "$4" >>counted; cat dry && exit ;;
esac
echo "$*" >>calls
ls disk/crash/*/ 2>/dev/null >there
read -r how <queue
busybox sed -i 1d queue
case $* in *' -F '*) out=/dev/stdout ;; esac
case $how in
  ok) printf 'the dump' >"$out" ;;
  space) printf 'a part' >"$out"; echo "write_buffer: No space left on device" >&2; exit 1 ;;
  memory) dd if=/dev/zero of="$out" bs=8192 count=1 2>/dev/null; kill -9 $$ ;;
  crash) printf 'part' >"$out"; kill -11 $$ ;;
  stands) printf 'p' >"$out"; exec sleep 50 ;;
  broken) echo "fsync: Input/output error" >&2; exit 1 ;;
  no-lzo) echo "makedumpfile: invalid option -- 'l'" >&2; exit 1 ;;
  *) echo "I do not know how" >&2; exit 1 ;;
esac
"""
SETUP = """
say() { echo "$*" >>said; }
bounded() { shift; "$@"; }
usleep() { :; }
arm_watchdogs() { :; }
load_modules() { :; }
pstore_keep() { echo pstore >>ends; }
last_words() { echo console >>ends; }
fs_open() {
  if [ -e "$TARGET_SPEC.gone" ]; then fail "$TARGET_SPEC is not there"; return 1; fi
  MOUNTPOINT=$PWD/$TARGET_SPEC
  mkdir -p "$MOUNTPOINT"
}
fs_close() { echo "$TARGET_SPEC" >>closed; directory_release; }
STARTED=$(now) CORE=$PWD/core HOST=h
"""


class World:
    """The directory of one test; ``targets`` are the names of its targets, in order."""

    def __init__(self, where: Path, targets: Sequence[str] = ("disk",)) -> None:
        self.where = where
        self.targets = tuple(targets)
        executable(where / "bin/makedumpfile", MAKEDUMPFILE)
        (where / "dmesg").write_text(LOG)
        (where / "core").write_text("the memory")
        (where / "targets").mkdir()
        for number, name in enumerate(targets):
            text = f"TARGET_KIND=fs TARGET_SPEC={name} TARGET_PATH=/crash\n"
            (where / f"targets/{number}.conf").write_text(text)

    def capture(
        self, *runs: str, more: str = "", by: Sequence[str] = ("busybox", "sh")
    ) -> dict[str, Any]:
        """One capture with these ends of makedumpfile's runs; the last report.

        Debian's busybox runs its own dd whatever is in PATH; other shells do not.
        """
        (self.where / "queue").write_text("".join(f"{run}\n" for run in runs))
        numbers = " ".join(str(n) for n in range(len(self.targets)))
        text = f"{SETUP}TARGETS='{numbers}'\n{more}\ncapture\ncat \"$CAPTURE_JSON\""
        report: dict[str, Any] = json.loads(shell(text, self.where, by))
        return report

    def lines(self, name: str) -> list[str]:
        """The lines of a file; none when there is no such file."""
        path = self.where / name
        return path.read_text().splitlines() if path.exists() else []

    def saved(self, target: str) -> dict[str, str]:
        """What is in the dump directory on that target, by name."""
        (place,) = (self.where / target / "crash").iterdir()
        return {path.name: path.read_text() for path in place.iterdir()}


def rungs(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The ladder without times and reasons: step, target, ok and, of dumps, the level."""
    return [
        (r["step"], r["target"], r["ok"], *([r["level"]] if "level" in r else []))
        for r in report["ladder"]
    ]
