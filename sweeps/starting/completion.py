"""Complete commands with Tab: verbs and options from the parser, configurations and settings by name."""

import argparse
import os
from typing import Any

from argcomplete.completers import DirectoriesCompleter
from argcomplete.finders import CompletionFinder


def complete(parser: argparse.ArgumentParser) -> None:
    """Write the completions of the command line in the shell's environment variables, and exit."""
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb_parser in verbs.choices.values():
        for action in verb_parser._actions:
            if completer := _COMPLETERS.get(action.dest):
                action.completer = completer  # type: ignore[attr-defined]
    _Finder()(parser, exit_method=os._exit)


def _configurations(prefix: str, **_: Any) -> list[str]:
    from sweeps.planning.config_names import named_configs

    return [name for name in named_configs() if name.startswith(prefix)]


_COMPLETERS = {"config": _configurations, "workdir": DirectoriesCompleter()}


class _Finder(CompletionFinder):
    def collect_completions(self, active_parsers: Any, parsed_args: Any, cword_prefix: str) -> list[str]:
        """Return the options that begin with the prefix, including --config.key= of every setting."""
        if cword_prefix.startswith("--config.") and "=" not in cword_prefix:
            from sweeps.planning.reference import keys

            return [option for key in keys() if (option := f"--config.{key}=").startswith(cword_prefix)]
        return super().collect_completions(active_parsers, parsed_args, cword_prefix)
