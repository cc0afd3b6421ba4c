"""Looking a name up in one of the package's lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def lookup(
    entries: Mapping[str, Entry], name: object, argument: str, aliases: Mapping[str, str] | None = None
) -> Entry:
    """``entries[name]``, or an error that names the argument and lists what it may be."""
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a name (str), got {type(name).__name__}")
    entry = entries.get((aliases or {}).get(name, name))
    if entry is None:
        known = ", ".join([*entries, *(aliases or {})])
        raise ValueError(f"unknown {argument} {name!r}; known: {known}")
    return entry
