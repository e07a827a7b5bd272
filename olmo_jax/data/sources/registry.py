"""The corpora that come with the library and have domains of their own, alone or joined: "debian_prose+olmo_tasks"."""

from collections.abc import Collection
from types import ModuleType

from olmo_jax.data import DataError
from olmo_jax.data.sources import debian_prose, olmo_tasks, python_packages

# Each has VERSION, `examples(max_megabytes)` and `sources(max_megabytes)`.
OWN: dict[str, ModuleType] = {
    "python_packages": python_packages,
    "debian_prose": debian_prose,
    "olmo_tasks": olmo_tasks,
}
BUILT_IN = (*OWN, "text_files")
_JOINED_BY = "+"


def parts(corpus: str) -> tuple[str, ...]:
    """The names in OWN that `data.corpus` stands for, in turn; () where it is none and joins none.

    Raises DataError for a joined name that isn't in OWN and for a domain that two of them share.
    """
    if corpus in OWN:
        return (corpus,)
    if _JOINED_BY not in corpus:
        return ()
    names = tuple(corpus.split(_JOINED_BY))
    of: dict[str, str] = {}
    for name in names:
        if name not in OWN:
            raise DataError(f"data.corpus = {corpus!r}: {name!r} can't be joined; only {', '.join(OWN)} can")
        for domain in domains(name):
            if domain in of:
                raise DataError(f"data.corpus = {corpus!r}: {of[domain]} and {name} both have a domain {domain!r}; "
                                "prepare one of them under a data.name of its own")  # fmt: skip
            of[domain] = name
    return names


def domains(name: str) -> Collection[str]:
    """The domains of a corpus in OWN."""
    if name == "python_packages":
        return ("prose", "code", *python_packages.HELD_OUT)
    return OWN[name].MEGABYTES


def rough_bytes(name: str, max_megabytes: float, wanted: Collection[str]) -> float:
    """About how much text a corpus in OWN has in the domains `wanted`; () for all."""
    chosen = [domain for domain in domains(name) if not wanted or domain in wanted]
    if name == "python_packages":  # of its kinds the one that training is meant for; there is more than anyone asks for
        return max_megabytes * 1e6 if chosen else 0.0
    return sum(min(max_megabytes, OWN[name].MEGABYTES[domain]) for domain in chosen) * 1e6
