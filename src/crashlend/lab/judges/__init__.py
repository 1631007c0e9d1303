# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crashlend loads beside what the kernel and kexec-tools load: same guest, same files."""
