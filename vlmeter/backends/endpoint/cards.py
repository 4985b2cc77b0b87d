"""Which graphics cards a server on this machine is on, by what NVML says of its processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


def cards_of(pids: Sequence[int]) -> list[str]:
    """List the names of the cards on which one of the processes computes; empty where NVML does not say.

    In a container process ids may be another name space's: then none is found.
    """
    if not pids:
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)} & set(pids):
                name = pynvml.nvmlDeviceGetName(handle)
                found.append(name.decode() if isinstance(name, bytes) else str(name))
    except Exception as error:  # NVML's absence shows in many ways, and none of them may stop a measurement
        log.info("which cards the server is on is not known: %s", error)
        return []
    return found
