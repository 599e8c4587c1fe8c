"""Chooses what of a class the API reference shows: all that is public, and nothing twice.

Left out are fields of dataclasses and those that `Attributes:` describes, which stand in the signature and in the docstring, and
special methods that have nothing to say.
"""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Class, Extension, Object


class Members(Extension):
    def on_package(self, *, pkg: Object, **_: Any) -> None:
        _choose(pkg)


def _choose(within: Object) -> None:
    for member in within.members.values():
        if member.is_alias:
            continue
        if isinstance(within, Class) and member.docstring is None and (_is_told(member, within) or member.is_special):
            member.public = False
        _choose(member)  # type: ignore[arg-type]


def _is_told(member: Any, of: Class) -> bool:
    if not isinstance(member, Attribute) or "property" in member.labels:
        return False
    return "dataclass" in of.labels or bool(of.docstring and "Attributes:" in of.docstring.value)
