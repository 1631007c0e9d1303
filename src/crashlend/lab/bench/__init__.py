# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kexec-tools and crashlend need, measured: the search, the run, the times, the report."""
