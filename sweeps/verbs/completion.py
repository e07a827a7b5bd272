"""olmo-jax completion"""

import argparse

from sweeps.verbs.verb import DONE, Command, Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _carry_out(command: Command) -> int:
    import argcomplete

    print(argcomplete.shellcode(["olmo-jax"], shell=command.arguments.shell))
    return DONE


VERB = Verb(
    "completion",
    "print code for your shell, so that Tab completes verbs, options and settings",
    'eval "$(olmo-jax completion bash)"',
    _carry_out,
    _arguments,
)
