"""Looking a name up in one of the package's lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def lookup(
    entries: Mapping[str, Entry], name: object, argument: str, aliases: Mapping[str, str] | None = None
) -> Entry:
    """``entries[name]``, or an error that names the argument and lists what it may be.

    An entry of the list stands for its own name.
    """
    if not isinstance(name, str):
        for entry in entries.values():
            if entry is name:
                return entry
        raise TypeError(f"{argument} must be a name (str), got {type(name).__name__}")
    found = entries.get((aliases or {}).get(name, name))
    if found is None:
        known = ", ".join([*entries, *(aliases or {})])
        raise ValueError(f"unknown {argument} {name!r}; known: {known}")
    return found
