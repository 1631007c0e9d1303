# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether kernels do at boot what crashkernel/boot.py says that they do."""
