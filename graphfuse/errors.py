"""Every exception that graphfuse raises on purpose.

::

    GraphFuseError
    |- CaptureError          the model could not be turned into a graph
    |- RuleError             a rule pack or a rule is wrong
    |- LabelError            a graph could not be labelled
    |- VerifyError           verification could not be carried out
    |- CorrespondenceError   the models do not match each other
    |- DataError             example inputs or data batches do not fit the model
    |- ConfigError           a setting is unknown or has a bad value
    |- CheckpointError       weights could not be read, or do not fit the model
    |- OutputError           a result, or a temporary file, could not be written
    |- ModelSpecError        the name of a model leads to no model

Each message says what was wrong, where, what was expected, and what to do about it.
"""

from __future__ import annotations

import re

AN = re.compile(r"[aeioAEIO]|[FHLMNRSX][A-Z0-9]|[uU][np](?!i)[a-z]")  # letters spelt out (an LSTM), unflatten, upsample


class GraphFuseError(Exception):
    """Base of all errors that graphfuse raises on purpose."""


class CaptureError(GraphFuseError):
    """The model could not be turned into a graph; names the user's source line."""


class RuleError(GraphFuseError):
    """A rule pack does not parse, or a rule does not hold; names the file and the entry."""


class LabelError(GraphFuseError):
    """A captured graph could not be labelled; names the node and the module."""


class VerifyError(GraphFuseError):
    """Verification could not be carried out (not: it was carried out and failed)."""


class CorrespondenceError(GraphFuseError):
    """The models to be fused do not match each other; names the first difference."""


class DataError(GraphFuseError):
    """Example inputs or data batches do not fit the model, or there are none."""


class ConfigError(GraphFuseError):
    """A setting is unknown or has a bad value; names the key and the nearest valid one."""


class CheckpointError(GraphFuseError):
    """Weights could not be read, are not finite, or do not fit the model; names the tensors."""


class OutputError(GraphFuseError):
    """A result could not be written where it was asked for (nothing was written), or a temporary file has no room."""


class ModelSpecError(GraphFuseError):
    """The name of a model leads to no model; says which part of the name failed."""


def kind_of(value: object) -> str:
    """The type of a value with its article, for messages.

    >>> kind_of(3), kind_of("3")
    ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if AN.match(name) else 'a'} {name}"
