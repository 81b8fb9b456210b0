"""The memory that a process holds, as the system tells it. It needs the standard library alone."""

import contextlib
import ctypes
import pathlib
import re
import sys


def resident(process="self"):
    """Bytes that a process, by its number, holds now; 0 where the system does not tell."""
    return status("VmRSS", process) or 0


def largest_resident():
    """Bytes. `ru_maxrss` begins with what the parent held; Linux knows better."""
    found = status("VmHWM")
    if found is not None:
        return found
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_largest_resident():
    """Forget what building the inputs took, where the system can."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def give_back_memory():
    """Give freed memory back to the system, where glibc can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def status(name, process="self"):
    """Bytes of a line of the process's status on Linux, or None where there is none."""
    try:
        text = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = re.search(rf"{name}:\s+(\d+)", text)
    return int(found[1]) * 1024 if found else None
