"""Models that are not name for name the same: the same computation under other names, and other depths."""

from graphfuse.matching.depth import DepthMatch, match_depth
from graphfuse.matching.forms import Form, Tracer, forms_of, without_gains
from graphfuse.matching.stacks import renamed
from graphfuse.matching.translate import Translation, call_of, same_program, translate

__all__ = [
    "DepthMatch",
    "Form",
    "Tracer",
    "Translation",
    "call_of",
    "forms_of",
    "match_depth",
    "renamed",
    "same_program",
    "translate",
    "without_gains",
]
