"""Models that are not name for name the same: the same computation under other names, and other depths."""

from graphfuse.matching.translate import Translation, call_of, same_program, translate

__all__ = ["Translation", "call_of", "same_program", "translate"]
