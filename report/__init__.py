"""What leaves the house: result documents, HTML reports, SARIF, figures and terminal summaries. Imports no room."""

from .html import render_html
from .scan_html import render_scan
from .scan_sarif import to_sarif
from .scan_schema import ScanResult
from .scan_terminal import scan_header, scan_row, scan_summary
from .scan_write import read_scans, scan_document, write_scan
from .schema import AuditResult
from .terminal import summary
from .write import check_folder, read, write

__all__ = [
    "AuditResult",
    "ScanResult",
    "check_folder",
    "read",
    "read_scans",
    "render_html",
    "render_scan",
    "scan_document",
    "scan_header",
    "scan_row",
    "scan_summary",
    "summary",
    "to_sarif",
    "write",
    "write_scan",
]
