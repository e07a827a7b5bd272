"""Suites of public models: their repositories, what the names say, and how published results are joined."""

import dataclasses
import re
import runpy
from collections.abc import Mapping
from pathlib import Path

from olmo_jax.config import ConfigError
from olmo_jax.errors import brief
from olmo_jax.hf.hub import PREFIX
from sweeps.histories.choice import with_braces

# What tells models of a suite apart; each is a column of the atlas.
KEYS = ("size", "corpus", "seed", "step")


@dataclasses.dataclass(frozen=True)
class Suite:
    """Public models that differ in known ways.

    Attributes:
      repositories: OWNER/NAME, or folders of revisions; a name may have one {a,b} or {1..9}.
      pattern: regular expression that is searched for in a repository's name, with groups size, corpus and seed for
        what the name says. The seed can also come from the revisions' names.
      revisions: which ones, as in --revisions of `import`.
      columns: maps size, corpus, seed and step to the columns of the published table that hold them. The rows of a
        table without a column for one of them have to agree in it.
      names: maps a size, corpus or seed, as the repositories and revisions have it, to its name in the published table.
      targets: columns of the published table that geometry is related to.
    """

    repositories: tuple[str, ...]
    pattern: str
    revisions: str = "20"
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        groups = re.compile(self.pattern).groupindex
        if unknown := groups.keys() - {*KEYS[:3]} | self.columns.keys() - {*KEYS}:
            raise ConfigError(f"suite: {min(unknown)} isn't one of {', '.join(KEYS)}")

    def sources(self) -> list[str]:
        """Return the repositories as `open_history` takes them."""
        names = [name for text in self.repositories for name in with_braces(text)]
        return [name if Path(name).is_dir() else f"{PREFIX}{name}" for name in names]

    def said(self, source: str) -> dict[str, str]:
        """Return what a repository's name says: size, corpus and seed, as far as it does."""
        match = re.search(self.pattern, source)
        if match is None:
            raise ConfigError(f"{source}: doesn't match the suite's pattern {self.pattern}")
        return {key: value for key, value in match.groupdict().items() if value is not None}


_SIZES = "4M,6M,8M,10M,14M,16M,20M,60M,90M,150M"
SUITES = {
    # One model per size, 154 revisions each.
    "pythia": Suite(
        ("EleutherAI/pythia-{70m,160m,410m,1b,1.4b}",),
        r"pythia-(?P<size>[\d.]+[mb])(?:-(?P<corpus>deduped))?$",
        columns={"size": "model", "step": "step"},
    ),
    # Nine more seeds of the smaller sizes, a repository each.
    "polypythias": Suite(
        tuple(f"EleutherAI/pythia-{size}-seed{{1..9}}" for size in ("14m", "31m", "70m", "160m", "410m")),
        r"pythia-(?P<size>\d+m)-seed(?P<seed>\d)$",
        columns={"size": "model", "seed": "seed", "step": "step"},
    ),
    # Five of 25 corpora and ten of 14 sizes, of which the revisions have the step and the seed.
    "datadecide": Suite(
        tuple(
            f"allenai/DataDecide-{corpus}-{{{_SIZES}}}"
            for corpus in ("dolma1_7", "dolma1_7-no-flan", "c4", "dclm-baseline", "falcon")
        ),
        r"DataDecide-(?P<corpus>.+)-(?P<size>\d+[MB])$",
        revisions="5",
        columns={"size": "params", "corpus": "data", "seed": "seed", "step": "step"},
        names={"corpus": {"dolma1_7": "Dolma1.7", "dolma1_7-no-flan": "Dolma1.7 (no Flan)"}},
        targets=("eval/pile-validation/Perplexity",),
    ),
}


def suite_named(text: str) -> Suite:
    """Return a suite by its name, or the SUITE of a Python file. Raises ConfigError."""
    if text in SUITES:
        return SUITES[text]
    path = Path(text)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(
            f"{text}: no such suite; give a Python file that defines SUITE, or one of {', '.join(SUITES)}"
        )
    try:
        suite = runpy.run_path(str(path)).get("SUITE")
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  the user's own code
        raise ConfigError(f"{path}: {type(error).__name__}: {brief(error)}") from error
    if not isinstance(suite, Suite):
        raise ConfigError(f"{path}: defines no SUITE of sweeps.studies.atlas.suites.Suite")
    return suite
