"""The built-in rule packs: data only. :mod:`graphfuse.rulebook` reads them."""
