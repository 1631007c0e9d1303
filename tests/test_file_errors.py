# SPDX-License-Identifier: LGPL-2.1-or-later
"""kexec_file_load's errno in words: which of its meanings it has here."""

from __future__ import annotations

import errno

import pytest

from crashlend.errors import RefusedError, TooSmallError
from crashlend.system.file_errors import OTHERS, SIGNATURES, Circumstances, file_error


def test_no_room_tells_what_was_to_be_placed_and_where() -> None:
    """Errno 99 in words, with the sizes that the caller knows."""
    error = file_error(errno.EADDRNOTAVAIL, Circumstances(sizes="it needs 60 MiB in one piece"))
    assert isinstance(error, TooSmallError)
    assert "EADDRNOTAVAIL" in str(error)
    assert "60 MiB in one piece" in str(error)


@pytest.mark.parametrize("code", SIGNATURES)
def test_a_signature_that_is_not_accepted_is_a_refusal(code: int) -> None:
    """Exit 11; the state of lockdown and Secure Boot is told, the hint names the signed image."""
    error = file_error(code, Circumstances("integrity", secure_boot=True))
    assert isinstance(error, RefusedError)
    assert errno.errorcode[code] in str(error)
    assert "lockdown is integrity, Secure Boot is on" in str(error)
    assert "signed" in error.hint


def test_lockdown_without_secure_boot_has_no_keys() -> None:
    """Even a signed image is refused: said, because EPERM alone looks like a lack of rights."""
    error = file_error(errno.EPERM, Circumstances("integrity", secure_boot=False))
    assert isinstance(error, RefusedError)
    assert "platform keyring is empty" in str(error)
    assert "Secure Boot" in error.hint


def test_under_secure_boot_a_refusal_is_about_the_signature_or_a_limit() -> None:
    """Both give EPERM, and both are named."""
    error = file_error(errno.EPERM, Circumstances("integrity", secure_boot=True))
    assert "does not accept the image's signature" in str(error)
    assert "limit" in str(error)


def test_without_lockdown_eperm_is_about_rights() -> None:
    """No word of signatures there."""
    error = file_error(errno.EPERM, Circumstances())
    assert isinstance(error, RefusedError)
    assert "signature" not in f"{error} {error.hint}"


@pytest.mark.parametrize("code", [*OTHERS, errno.ENOMEM])
def test_the_others_have_a_cause_and_a_hint(code: int) -> None:
    """ENOEXEC, ENOENT and their like; an unknown one is told as the system does."""
    error = file_error(code, Circumstances())
    assert errno.errorcode[code] in str(error)
    assert error.why
    assert error.hint
    assert "Input/output error" in str(file_error(errno.EIO, Circumstances()))
