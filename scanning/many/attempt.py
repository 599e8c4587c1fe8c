"""What runs in a cell. Light to import: torch is loaded by the scan itself, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import ScanConfig
from .failures import is_final, is_of_memory, one_line


def attempt(
    scan: Callable[..., Any], model: str, config: ScanConfig, progress: Callable[[str, float], None]
) -> tuple[str, str, bool, bool]:
    """The result as a document; or why there is none, whether that is final, and whether to try again with more room."""
    try:
        result = scan(model, config, progress=progress)
        from ...report.write import json_document

        return json_document(result.model_dump()).decode(), "", True, False
    except Exception as error:
        return "", one_line(error), is_final(error), is_of_memory(error)
