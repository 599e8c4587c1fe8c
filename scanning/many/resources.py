"""How many models this machine can take side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# A 16-bit checkpoint doubles in single precision; views, caches and gradients want as much again, and the process itself.
_COPIES = 5
_PROCESS = 2**30


def cores() -> int:
    from joblib import cpu_count

    return cpu_count()  # heeds affinity and a container's share, which os.cpu_count does not


def jobs_for(folders: Sequence[Path], device: str) -> int:
    """As many as there are cores, if as many of the largest model fit into what memory is free now; one on a GPU.

    An estimate: what it gets wrong, the second try with nothing beside it makes good.
    """
    if device != "cpu":
        return 1
    largest = max(
        sum(file.stat().st_size for file in folder.rglob("*.safetensors") if file.is_file()) for folder in folders
    )
    free = free_memory()
    if free is None:
        return cores()
    return max(1, min(cores(), free // (_COPIES * largest + _PROCESS)))


def free_memory() -> int | None:
    """Bytes that the system could hand out, its file cache counted in; None where it does not say (no Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
