"""Memory that is freed stays with the process: on a processor it is soon needed again."""

from __future__ import annotations

import ctypes
import os
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""glibc's numbers of what is set (malloc.h)."""
MOST_KEPT_BYTES = 2**30
"""Larger blocks are given back to the system when they are freed."""


def keep_freed_memory() -> bool:
    """Let this process keep memory that is freed for its next tensors; whether that was done.

    glibc gives blocks of some size back to the system and fetches them anew, zeroed and page by page: a tenth or
    more of a clip's time on a processor. Nothing is done with other C libraries, nor where the user has set
    ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_``.
    """
    if platform.system() != "Linux" or any(f"MALLOC_{name}_THRESHOLD_" in os.environ for name in ("MMAP", "TRIM")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # -1 is never: what lies at the top of the heap stays.
    return bool(mallopt(MMAP_THRESHOLD, MOST_KEPT_BYTES)) and bool(mallopt(TRIM_THRESHOLD, -1))
