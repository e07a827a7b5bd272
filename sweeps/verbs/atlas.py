"""olmo-jax atlas"""

import argparse
import os
from pathlib import Path

from sweeps.verbs.verb import DONE, Command, Verb, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        type=os.path.expanduser,
        metavar="SUITE",
        help="pythia, polypythias, datadecide, or a Python file that defines SUITE",
    )
    parser.add_argument(
        "--revisions", metavar="WHICH", help="of each repository, as for `import` (default: the suite's)"
    )
    parser.add_argument(
        "--join",
        type=os.path.expanduser,
        metavar="FILE",
        help="a published table of results, .parquet or .csv, to relate the geometry to",
    )
    parser.add_argument(
        "--targets", metavar="COLUMNS", help="columns of that table, separated by commas (default: the suite's)"
    )


def _carry_out(command: Command) -> int:
    import dataclasses

    from olmo_jax.config import ConfigError
    from sweeps.running import stages
    from sweeps.studies.atlas import atlas
    from sweeps.studies.atlas.suites import suite_named
    from sweeps.verbs.verb import names

    arguments = command.arguments
    suite = suite_named(arguments.suite)
    if arguments.revisions:
        suite = dataclasses.replace(suite, revisions=arguments.revisions)
    if arguments.targets:
        suite = dataclasses.replace(suite, targets=names(arguments.targets))
    if arguments.join and not suite.targets:
        raise ConfigError("--targets: names no column of the table to relate geometry to; give one or several")
    if arguments.targets and not arguments.join:
        raise ConfigError("--targets: are columns of a published table; give it with --join=FILE")
    workdir = workdir_of(arguments)
    stages.keep_compiled(workdir)
    print("\n".join(atlas.run(suite, Path(workdir), arguments.join)))
    return DONE


VERB = Verb(
    "atlas",
    "relate the geometry of public models to their published results",
    "olmo-jax atlas datadecide --join=results.parquet --workdir=runs/atlas",
    _carry_out,
    _arguments,
    workdir="needed",
)
