"""The rule book: what is known of every op, from YAML packs, from Python rules, and from torch's own tags."""

from __future__ import annotations

from graphfuse.rulebook.op import Label, Op, Rule
from graphfuse.rulebook.packs import Pack, RuleBook, build, load_rules, read_pack

__all__ = ["Label", "Op", "Pack", "Rule", "RuleBook", "build", "load_rules", "read_pack"]
