# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that is stopped where purgatory begins: its memory compared to the byte, bits of it flipped."""
