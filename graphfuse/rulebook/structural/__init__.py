"""Rules for ops whose relation depends on their arguments, one small function for each family of ops."""

from __future__ import annotations

from collections.abc import Mapping

from graphfuse.rulebook.op import Rule
from graphfuse.rulebook.structural.blocks import BLOCKS
from graphfuse.rulebook.structural.contractions import CONTRACTIONS
from graphfuse.rulebook.structural.indexing import INDEXING
from graphfuse.rulebook.structural.recurrent import RECURRENT
from graphfuse.rulebook.structural.reductions import REDUCTIONS
from graphfuse.rulebook.structural.views import VIEWS

STRUCTURAL: Mapping[str, Rule] = {**VIEWS, **BLOCKS, **CONTRACTIONS, **REDUCTIONS, **INDEXING, **RECURRENT}
"""Every structural rule by op; a new family joins by adding its table here."""

__all__ = ["STRUCTURAL"]
