"""olmo-jax prepare"""

from sweeps.verbs.stage import plan_of
from sweeps.verbs.verb import DONE, Command, Verb, workdir_of


def _carry_out(command: Command) -> int:
    from sweeps.running import stages

    stages.prepare_all(workdir_of(command.arguments), plan_of(command))
    return DONE


VERB = Verb(
    "prepare",
    "turn the corpus into shards of tokens",
    "olmo-jax prepare --config=demo --workdir=runs/demo",
    _carry_out,
    config="needed",
    workdir="needed",
)
