"""The corpora that come with the library and define their domains; names may be joined: "debian_prose+olmo_tasks"."""

from collections.abc import Collection
from types import ModuleType

from olmo_jax.data import DataError
from olmo_jax.data.sources import debian_prose, olmo_tasks, python_packages

# Each has VERSION, `examples(max_megabytes)` and `sources(max_megabytes)`.
CORPORA: dict[str, ModuleType] = {
    "python_packages": python_packages,
    "debian_prose": debian_prose,
    "olmo_tasks": olmo_tasks,
}
BUILT_IN = (*CORPORA, "text_files")
_JOINED_BY = "+"


def parts(corpus: str) -> tuple[str, ...]:
    """Return the names in CORPORA that `data.corpus` stands for, in order; () if it is neither one nor several joined.

    Raises DataError for a joined name that isn't in CORPORA, and for a domain that two of them share.
    """
    if corpus in CORPORA:
        return (corpus,)
    if _JOINED_BY not in corpus:
        return ()
    names = tuple(corpus.split(_JOINED_BY))
    owner: dict[str, str] = {}
    for name in names:
        if name not in CORPORA:
            raise DataError(f"data.corpus = {corpus!r}: {name!r} can't be joined; only {', '.join(CORPORA)} can")
        for domain in domains(name):
            if domain in owner:
                raise DataError(f"data.corpus = {corpus!r}: {owner[domain]} and {name} both have a domain {domain!r}; "
                                "prepare one of them separately, under another data.name")  # fmt: skip
            owner[domain] = name
    return names


def domains(name: str) -> Collection[str]:
    """Return the domains of a corpus in CORPORA."""
    if name == "python_packages":
        return ("prose", "code", *python_packages.HELD_OUT)
    return CORPORA[name].MEGABYTES


def rough_bytes(name: str, max_megabytes: float, wanted: Collection[str]) -> float:
    """Return the approximate bytes of text of a corpus in CORPORA.

    Args:
      max_megabytes: the configured limit per domain. wanted: the domains that count; () for all.
    """
    chosen = [domain for domain in domains(name) if not wanted or domain in wanted]
    if name == "python_packages":  # its size isn't known, so assume that one kind, training prose, reaches the limit
        return max_megabytes * 1e6 if chosen else 0.0
    return sum(min(max_megabytes, CORPORA[name].MEGABYTES[domain]) for domain in chosen) * 1e6
