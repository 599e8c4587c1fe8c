"""What is checked on a checkpoint's files before anything is built from them. Knows nothing about models.

A checkpoint under audit is hostile: no pickle is opened, no code that it brings is run, no file outside its folder is read, and
nothing is allocated from its configuration before the weights' own headers bear it out.
"""

from .adapter import check_adapter
from .documents import read_json
from .folder import check_files, weight_files

__all__ = ["check_adapter", "check_files", "read_json", "weight_files"]
