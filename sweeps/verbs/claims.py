"""olmo-jax claims"""

import argparse
import os

from sweeps.verbs.verb import DONE, Command, Verb, json_argument


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="*",
        type=os.path.expanduser,
        metavar="DIR",
        help="working directories of sweeps that have a report; without any, the claims are listed",
    )
    parser.add_argument(
        "--to", type=os.path.expanduser, metavar="DIR", help="folder for index.html, claims.json and claims.md"
    )
    json_argument(parser)


def _carry_out(command: Command) -> int:
    from etils import epath

    from sweeps.claims import output
    from sweeps.claims.claim import verdict_on
    from sweeps.claims.registry import registered
    from sweeps.claims.sweep import read_finished

    arguments = command.arguments
    sweeps = {str(workdir): read_finished(epath.Path(workdir)) for workdir in arguments.workdirs}
    results = [verdict_on(claim, sweeps) for claim in registered()]
    page = output.write(epath.Path(arguments.to), results, command.text) if arguments.to else None
    if arguments.json:
        print(output.as_json(results))
        return DONE
    print("\n".join(output.lines(results)))
    if page is not None:
        print(f"Page: {page}")
    return DONE


VERB = Verb(
    "claims",
    "test published claims on sweeps: supported, contradicted, unclear or untestable",
    "olmo-jax claims runs/anneal runs/do-rank --to=runs/claims",
    _carry_out,
    _arguments,
)
