# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the crash kernel will check the signatures of its modules.

It inherits production's firmware and command line, so production says it: a kernel that takes signed
modules alone, is locked down, appraises them (IMA), or was started under Secure Boot.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crashlend.capture.hosttree import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# struct boot_params, secure_boot: 3 is "enabled" (include/linux/efi.h: efi_secureboot_mode)
_SECURE_BOOT_AT, _ENABLED = 0x1EC, 3
# With IMA's appraisal the signature of a module is what is appraised, or it has none at all
# (security/integrity/ima/ima_policy.c: default_policy_setup, ima_main.c: ima_load_data).
_WORDS = re.compile(
    r"(^|\s)(module\.sig_enforce|lockdown=|ima_appraise=enforce|ima_appraise_tcb"
    r"|ima_policy=\S*(secure_boot|appraise_tcb))"
)
_APPRAISED = re.compile(r"(?m)^appraise\b.*\bfunc=MODULE_CHECK\b")


def are_enforced(root: Path, config: Mapping[str, str], append: str = "") -> bool:
    """Whether modules must keep their signatures. ``append``: more words for its command line."""
    if config.get("CONFIG_MODULE_SIG_FORCE") == "y":
        return True
    if read_text(root / "sys/module/module/parameters/sig_enforce") == "Y":
        return True
    lockdown = read_text(root / "sys/kernel/security/lockdown")
    if lockdown and "[none]" not in lockdown:
        return True
    # a policy can be read with CONFIG_IMA_READ_POLICY; the crash kernel has it where it is built in
    if _APPRAISED.search(read_text(root / "sys/kernel/security/ima/policy")):
        return True
    if _WORDS.search(read_text(root / "proc/cmdline")) or _WORDS.search(append):
        return True
    # where securityfs is not mounted nothing says that the kernel is locked down
    try:
        with (root / "sys/kernel/boot_params/data").open("rb") as stream:
            data = stream.read(_SECURE_BOOT_AT + 1)
    except OSError:
        return False
    return len(data) > _SECURE_BOOT_AT and data[_SECURE_BOOT_AT] >= _ENABLED
