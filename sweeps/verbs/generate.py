"""olmo-jax generate"""

import argparse
import json

from sweeps.verbs.verb import DONE, Command, Verb, json_argument, run_and_step_arguments, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    run_and_step_arguments(parser, "id or pattern ('*') of runs in --workdir; without --workdir, a Hugging Face folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue, the beginning of a document")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="number of new tokens (default: 64)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default: the likeliest token"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of total probability P"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="number of texts to draw (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    json_argument(parser)


def _carry_out(command: Command) -> int:
    from sweeps.models.generate import Sampling, continuations

    arguments = command.arguments
    sampling = Sampling(**{name: getattr(arguments, name) for name in Sampling._fields})
    workdir = workdir_of(arguments) if arguments.workdir else None
    results = continuations(arguments.run, arguments.prompt, sampling, workdir, arguments.step)
    if arguments.json:
        print(json.dumps({"prompt": arguments.prompt, "continuations": [result._asdict() for result in results]}))
        return DONE
    for result in results:
        print(f"{result.run}{'' if result.step is None else f' at step {result.step}'}:")
        print("\n".join(f"  {arguments.prompt}|{text}" for text in result.texts))
    return DONE


VERB = Verb(
    "generate",
    "generate text from runs, or from a Hugging Face folder",
    "olmo-jax generate '*' --workdir=demo --prompt='Returns the number of' --tokens=32",
    _carry_out,
    _arguments,
    workdir="taken",
)
