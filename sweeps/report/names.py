"""Columns of the table in words, for the figures and tables of papers, without escapes."""

from collections.abc import Sequence

from sweeps.report.curves import metric_name, target_name
from sweeps.table.columns import target_of


def column_name(column: str) -> str:
    """Return a column of geometry in words, with its target: "Unembedding W: mean cosine of rows"."""
    name = metric_name(column)
    return f"{target_name(target_of(column))}: {name[:1].lower()}{name[1:]}" if "/" in column else name


def loss_name(column: str) -> str:
    """Return a column of a loss in words: `gptq_3/in_domain` is "GPTQ 3, in domain"."""
    evaluation, _, name = column.partition("/")
    words = evaluation.replace("lm_loss", "loss").replace("gptq", "GPTQ").replace("_lr", ", rate ")
    return (f"{words}, {name}" if name else words).replace("_", " ")


def any_name(column: str, losses: Sequence[str]) -> str:
    """Return a column in words, as a loss if it is among these, else as geometry."""
    return loss_name(column) if column in losses else column_name(column)
