# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Dask cluster as the executor of a matrix (the extra [cluster]).

Its workers are other machines with crashlend[cluster,lab] and QEMU: as many trials run on one as it has
threads (``dask worker --nthreads N``). Dask's protocol lets whoever reaches the scheduler run
what he likes: only on a network of trusted machines, or with TLS.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable

from crashlend.errors import CrashlendError, UsageError
from crashlend.lab.packages import silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from crashlend.lab.packages import Say

CONNECT_SECONDS = 30.0
_ADDRESS = re.compile(
    r"(tcp|tls|wss?)://(?P<host>[^\s/:\[\]]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})"
)


def check_address(address: str) -> None:
    """UsageError unless this is SCHEME://HOST:PORT: Dask's client does not survive others tidily."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        hint = "it is what dask scheduler prints, such as tcp://HOST:8786"
        raise UsageError(f"--dask {address!r}", "it is not SCHEME://HOST:PORT", hint=hint)


@contextmanager
def cluster(
    address: str, say: Say = silent, connect_seconds: float = CONNECT_SECONDS
) -> Iterator[Callable[[], Executor]]:
    """What makes an executor of the cluster whose scheduler is at ``address`` (tcp://HOST:PORT).

    UsageError where that is no address, CrashlendError when Dask is not installed, the scheduler does
    not answer, or it has no workers: trials would wait for one for ever. A worker that is lost is
    Dask's to notice: it runs the trial elsewhere a few times, then the trial's future fails.
    """
    check_address(address)
    try:
        from distributed import Client
    except ImportError:
        hint = "pip install 'crashlend[cluster]'"
        raise CrashlendError("cannot use Dask", "it is not installed", hint=hint) from None
    try:
        client = Client(address, timeout=connect_seconds, set_as_default=False)
    except (OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        hint = "dask scheduler, and dask worker on each machine, make a cluster"
        raise CrashlendError(f"cannot reach the cluster at {address}", why, hint=hint) from None
    with client:
        threads = client.nthreads().values()
        if not threads:
            hint = f"on each machine: dask worker {address}"
            raise CrashlendError(f"the cluster at {address}", "it has no workers", hint=hint)
        say(f"{len(threads)} workers, {sum(threads)} trials at a time")
        # each submission is another trial, whatever its arguments
        yield lambda: client.get_executor(pure=False)
