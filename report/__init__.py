"""What leaves the house: the result document, the HTML report, figures and the terminal summary. Imports no room."""

from .html import render_html
from .schema import AuditResult
from .terminal import summary
from .write import check_folder, read, write

__all__ = ["AuditResult", "check_folder", "read", "render_html", "summary", "write"]
