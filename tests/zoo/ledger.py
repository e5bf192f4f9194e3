"""What does not conform yet, and why; an entry that comes to conform fails its test until it is struck out here."""

from __future__ import annotations

KNOWN: dict[str, str] = {}
