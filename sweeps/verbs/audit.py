"""olmo-jax audit"""

import argparse
import collections
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.verbs.verb import DONE, FAILED, Command, Verb, json_argument

if TYPE_CHECKING:
    from sweeps.histories.audit import Audit

_LISTED = 20  # missing steps


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=os.path.expanduser,
        metavar="SOURCE",
        help="hub:OWNER/NAME, or a folder of revisions with names such as step3000",
    )
    parser.add_argument(
        "--revisions",
        default="*",
        metavar="WHICH",
        help="names or patterns with * separated by commas, or a regular expression with groups such as (?P<step>...) "
        "(default: all)",
    )
    parser.add_argument(
        "--figure", type=os.path.expanduser, metavar="FILE", help="also draw it: .svg, .png, .pdf or .html"
    )
    json_argument(parser)


def _carry_out(command: Command) -> int:
    from sweeps.histories.audit import audit
    from sweeps.histories.choice import Revisions
    from sweeps.histories.history import open_history

    arguments = command.arguments
    figure = Path(arguments.figure) if arguments.figure else None
    if figure:
        from sweeps.histories.figure import check_figure, write_figure

        check_figure(figure)
    result = audit(open_history(arguments.source, Revisions(arguments.revisions)))
    if figure:
        write_figure(result, figure)
    print(json.dumps(result.as_json()) if arguments.json else "\n".join(_lines(result)))
    return DONE if result.is_clean else FAILED


def _lines(result: "Audit") -> list[str]:
    """Return the table of what is at fault, the missing steps, and a summary."""
    width = max((len(finding.revision) for finding in result.at_fault), default=0)
    lines = [f"{f.revision:{width}}  {f.verdict:12}  {f.detail}" for f in result.at_fault]
    lines += [
        f"missing{f' of {training}' if training else ''}: {', '.join(map(str, steps[:_LISTED]))}"
        + (f" and {len(steps) - _LISTED} more" if len(steps) > _LISTED else "")
        for training, steps in result.missing.items()
    ]
    noted = collections.Counter(f.detail for f in result.findings if f.verdict == "ok" and f.detail)
    lines += [f"{count} of {len(result.findings)}: {detail}" for detail, count in noted.items()]
    if result.unnamed:
        lines.append(f"left out, as their names give no step: {', '.join(result.unnamed[:_LISTED])}")
    share = f" ({result.bytes_read / result.bytes:.2%})" if result.bytes else ""
    lines.append(
        f"{result.source}: {len(result.findings)} revisions, {len(result.at_fault)} with a problem; read "
        f"{result.bytes_read / 1e6:,.1f} MB of {result.bytes / 1e6:,.1f} MB{share}"
        + (f", some rows of {result.sampled}" if result.sampled else "")
    )
    return lines


VERB = Verb(
    "audit",
    "find what is wrong with a model's history, without fetching it",
    "olmo-jax audit hub:EleutherAI/pythia-14m",
    _carry_out,
    _arguments,
)
