# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of trials where many are run: they go when it went well, and stay when it did not."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Leftovers:
    """``directory``/running/NAME while a trial runs, ``directory``/failed/NAME afterwards."""

    directory: Path

    def begin(self, name: str) -> Path:
        """Where the trial of this name may put its files; nothing of an earlier try is there."""
        where = self.directory / "running" / name
        shutil.rmtree(where, ignore_errors=True)
        return where

    def drop(self, name: str) -> None:
        """It went well."""
        shutil.rmtree(self.directory / "running" / name, ignore_errors=True)

    def keep(self, name: str) -> None:
        """It did not: its files, where it has any, take the place of an earlier run's."""
        where = self.directory / "running" / name
        if not where.exists():
            return
        kept = self.failed(name)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        where.rename(kept)

    def failed(self, name: str) -> Path:
        """Where :meth:`keep` puts them."""
        return self.directory / "failed" / name

    def clear(self) -> None:
        """Remove what trials that were ended have left."""
        shutil.rmtree(self.directory / "running", ignore_errors=True)
