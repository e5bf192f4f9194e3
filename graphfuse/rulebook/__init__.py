"""The rule book: what is known of every op, from YAML packs, from Python rules, and from torch's own tags."""

from __future__ import annotations

from graphfuse.rulebook.op import Label, Op, Rule
from graphfuse.rulebook.packs import Pack, RuleBook, Rules, build, load_rules, read_pack
from graphfuse.rulebook.structural.table import Table

__all__ = ["Label", "Op", "Pack", "Rule", "RuleBook", "Rules", "Table", "build", "load_rules", "read_pack"]
