"""Write docs/reference/commands.md, the --help of every verb: `python -m sweeps.verbs.reference`."""

import argparse
import functools
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"


def page() -> str:
    """Return the page; Python 3.13 formats parts of it differently from 3.11 and 3.12."""
    from sweeps.arguments import parser
    from sweeps.verbs import GROUPS

    (verbs,) = (action for action in parser()._actions if action.dest == "verb")
    assert isinstance(verbs.choices, dict)
    text = [
        "# Commands",
        "",
        "What `olmo-jax VERB --help` prints. Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 stopped by "
        "a signal after a checkpoint, so that the same command resumes it.",
    ]
    for heading, group in GROUPS.items():
        text += ["", f"## {heading[0].upper()}{heading[1:]}"]
        for verb in group:
            verb_parser = verbs.choices[verb.name]
            verb_parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=100)
            text += ["", f"### {verb.name}", "", "```", verb_parser.format_help().rstrip(), "```"]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
