# SPDX-License-Identifier: LGPL-2.1-or-later
"""Binary and text formats, pure: bytes in, frozen objects out, and back."""
