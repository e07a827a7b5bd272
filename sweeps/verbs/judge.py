"""olmo-jax judge"""

import argparse
import json
import os

from sweeps.verbs.verb import DONE, Command, Verb, json_argument, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "metrics",
        nargs="*",
        type=os.path.expanduser,
        metavar="METRIC",
        help="a column such as unembedding/effective_rank or final_states.validation/local_two_nn, a registered name "
        "(then of the unembedding), or a Python file with one @metric; rate/COLUMN means that column's change per "
        "ln(tokens)",
    )
    parser.add_argument("--all", action="store_true", help="judge every metric of the sweep, and rank them in a table")
    parser.add_argument(
        "--interventions",
        type=os.path.expanduser,
        metavar="DIR",
        help="working directory of a sweep with interventions, such as do_rank (default: those of --workdir)",
    )
    json_argument(parser)


def _carry_out(command: Command) -> int:
    from etils import epath

    from olmo_jax.config import ConfigError
    from sweeps.judge import output, sweep
    from sweeps.judge.card import judge
    from sweeps.running import stages
    from sweeps.table.columns import geometry_columns
    from sweeps.table.table import read_table

    arguments = command.arguments
    if bool(arguments.metrics) == arguments.all:
        raise ConfigError("judge: name one or several metrics, or give --all")
    workdir = workdir_of(arguments)
    table = read_table(workdir)
    columns = geometry_columns(table) if arguments.all else [sweep.column_of(m, table) for m in arguments.metrics]
    if not columns:
        raise ConfigError(f"--workdir={workdir}: its table has no geometry; set config.train.probe.every")
    columns = list(dict.fromkeys(columns))
    stages.keep_compiled(workdir)
    other = epath.Path(arguments.interventions) if arguments.interventions else None
    evidence = sweep.evidence(workdir, table, columns, other, reads_texts=not arguments.all)
    cards = output.ranked(judge(columns, evidence))
    page = output.write(workdir, cards, command.text)
    if arguments.json:
        print(json.dumps([card.as_json() for card in cards]))
        return DONE
    print("\n".join(output.table_lines(cards) if arguments.all else output.lines(cards)))
    print(f"Page: {page}")
    return DONE


VERB = Verb(
    "judge",
    "test a metric: gauge, null, seed noise, gain and cause",
    "olmo-jax judge effective_rank_percent --workdir=runs/mine --interventions=runs/do-rank",
    _carry_out,
    _arguments,
    workdir="needed",
)
