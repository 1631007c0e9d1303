# SPDX-License-Identifier: LGPL-2.1-or-later
"""The initramfs of the crash kernel and what runs in it."""
