"""The command line's grammar: verbs, their arguments, and the overrides of a configuration among them."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from olmo_jax.errors import UserError


class UsageError(UserError):
    """A command line that can't be understood; the message says what of it."""

    exit_code = 2


class Verb(NamedTuple):
    """What a verb does; whether it takes --config and --workdir ("needed", "taken", "" for no); its own arguments."""

    help: str
    config: str
    workdir: str
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flops",
        type=float,
        metavar="F",
        help="FLOP/s used to estimate hours (default: the matmul peak of this machine, measured)",
    )
    _json(parser)


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="again every few seconds, until all is done")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cohort", metavar="K", help="only this cohort, by its place in the plan from 0, or its id")
    _work(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        type=_names,
        default=(),
        metavar="KINDS",
        help="such as gptq,tasks: kinds, or names of results, with * and ? (default: all of the configuration)",
    )
    parser.add_argument("--runs", default="*", metavar="GLOB", help="of run ids (default: all)")
    parser.add_argument(
        "--steps",
        type=_checkpoints,
        default="",
        metavar="STEPS",
        help="final, all, or some such as 100,200 (default: loss at all, if so configured, and the rest at the last)",
    )
    _mirror(parser)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _checkpoints(text: str) -> str | tuple[int, ...]:
    if text in ("", "final", "all"):
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: needs final, all, or steps of checkpoints such as 100,200")
    return tuple(map(int, text.split(",")))


def _mirror(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mirror",
        type=os.path.expanduser,
        default="",
        metavar="URL",
        help="a folder, s3:// or gs:// that checkpoints and metrics are copied to, and fetched from by an empty disk",
    )


def _launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", required=True, metavar="ENGINE", help="slurm, local or sky (a SkyPilot task file)")
    parser.add_argument("--parallel", type=int, metavar="N", help="most tasks at once, 0 for all (local: 1)")
    parser.add_argument("--minutes", type=int, metavar="N", help="time limit of a Slurm task, which then comes back")
    parser.add_argument("--gpus", type=int, metavar="N", help="of a task")
    parser.add_argument("--cpus", type=int, metavar="N", help="of a task")
    parser.add_argument("--memory_gb", type=int, metavar="N", help="of a task")
    parser.add_argument("--partition", metavar="NAME", help="Slurm's")
    parser.add_argument("--account", metavar="NAME", help="Slurm's")
    parser.add_argument(
        "--more",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for sbatch (KEY alone: a flag, KEY=: leave it out), or SkyPilot's resources (may be repeated)",
    )
    _mirror(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts",
        default="",
        metavar="HOSTS",
        help="one training over several processes: auto on a cluster that tells, else HOST:PORT,COUNT,PLACE of each",
    )
    _work(parser)


def _work(parser: argparse.ArgumentParser) -> None:
    _mirror(parser)
    parser.add_argument(
        "--profile",
        type=_steps,
        default=(),
        metavar="FIRST:LAST",
        help="a trace of these steps of each cohort for TensorBoard or Perfetto, in profile/ of --workdir",
    )


def _steps(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text!r}: needs two steps, counted from 1, such as 10:20")
    return first, last


def _run_and_step(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("run", type=os.path.expanduser, metavar="RUN", help=help)
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the last)")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figure",
        metavar="NAME",
        help="only this figure of report/figures, again, such as loss_against_geometry (a name that isn't one: a list)",
    )


def _geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        metavar="PATH",
        help="a working directory, .safetensors, a folder of them, or .npy",
    )
    parser.add_argument("--run", metavar="RUN_ID", help="this run of a working directory (default: every run)")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoints of this step (default: the last)")
    parser.add_argument("--tensors", metavar="REGEX", help="which matrices, by name (default: embeddings, or all)")
    parser.add_argument("--metrics", metavar="NAMES", help="what to measure, such as effective_rank,mean_cosine")
    parser.add_argument(
        "--gauge",
        metavar="NORM",
        help="measure also without what the logits can't see behind this norm: none, layer_norm, affine_layer_norm, "
        "rms_norm (default: the model's norm for the unembedding of our own runs, else none)",
    )
    _json(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    _run_and_step(parser, "id or pattern ('*') of runs in --workdir; without it, a Hugging Face folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on from, after a beginning of text")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="how many (default: 64)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default: the likeliest token"
    )
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="draw among the likeliest of this share")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="how often to draw (default: once)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    _json(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    _run_and_step(parser, "id of a run in --workdir, or a pattern of it alone")
    parser.add_argument("--to", type=os.path.expanduser, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--dtype", default="float32", help="float32, the default, or bfloat16")
    parser.add_argument("--shard_mb", type=float, default=5000.0, metavar="MB", help="most of one file (default: 5000)")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=os.path.expanduser,
        metavar="WORKDIR",
        help="of sweeps that have been reported, two or more",
    )
    parser.add_argument(
        "--to", type=os.path.expanduser, required=True, metavar="DIR", help="where index.html and comparison.csv go"
    )
    parser.add_argument(
        "--pair_by",
        type=_names,
        default=(),
        metavar="KEYS",
        help="settings to pair runs by, such as model.d_model,optimizer.weight_decay (default: those that vary)",
    )


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        metavar="PATH",
        help="a Hugging Face folder, or a folder of such named like step3000",
    )
    parser.add_argument("--name", help="begins the run's id (default: the folder's name)")
    parser.add_argument(
        "--step", type=int, metavar="N", help="of a single checkpoint (default: by the folder's name, or 1)"
    )


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "part",
        nargs="?",
        default="",
        metavar="PART",
        help="a section or a setting, such as train.optimizer or weight_decay",
    )


VERBS = {
    "plan": Verb("show the cohorts, runs and steps of a sweep before anything runs", "needed", "taken", _plan),
    "prepare": Verb("corpus to token shards", "needed", "needed"),
    "train": Verb("train one run, or a sweep's runs: prepare and train, no more", "needed", "needed", _train),
    "run": Verb(
        "all of a sweep: prepare, train, evaluate, report; again after any interruption", "needed", "needed", _run
    ),
    "status": Verb("what a working directory holds so far", "taken", "needed", _watch),
    "evaluate": Verb(
        "losses, quantisation, fine-tuning, noise, tasks of what is trained", "taken", "needed", _evaluate
    ),
    "report": Verb("write results.parquet and report/index.html from what is there", "taken", "needed", _report),
    "compare": Verb("two or more sweeps, runs paired by configuration: page and table", "", "", _compare),
    "launch": Verb("a sweep on Slurm, on processes of this machine, or in a cloud", "needed", "needed", _launch),
    "geometry": Verb("a table of the geometry of any weights", "", "", _geometry),
    "generate": Verb("text from runs, or from a Hugging Face folder", "", "taken", _generate),
    "export": Verb("a run as a Hugging Face folder", "", "needed", _export),
    "config": Verb("every setting of the configuration: default, values, role, meaning", "", "", _config),
    "import": Verb("a Hugging Face folder, or one of revisions, as a run", "taken", "needed", _import),
}


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a command (with `verb`), and its --config and --config.key=value, each as one string.

    Raises UsageError; --help prints and exits, as argparse does.
    """
    ours, overrides = _split(argv)
    arguments = _parser().parse_args(ours)
    verb, workdir = VERBS[arguments.verb], getattr(arguments, "workdir", "")
    if overrides and not verb.config:
        raise UsageError(f"olmo-jax {arguments.verb} takes no --config")
    if verb.config == "needed" and not overrides:
        raise UsageError(f"olmo-jax {arguments.verb} needs --config=FILE, such as --config=demo")
    if verb.workdir == "needed" and not workdir:
        raise UsageError(f"olmo-jax {arguments.verb} needs --workdir=DIR")
    return arguments, overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<10} {verb.help}" for name, verb in VERBS.items())
    parser = _Parser(
        prog="olmo-jax",
        usage="olmo-jax VERB --config=FILE[:arg] [--config.a.b=value ...] --workdir=DIR\n       olmo-jax VERB --help",
        description="Trains cohorts of small language models and asks what their geometry says.\n\nverbs:\n" + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="status, evaluate and report take the configuration from the working directory if --config isn't given. "
        "olmo-jax config lists all that --config.a.b=value can set.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, prog="olmo-jax", metavar="VERB", help=argparse.SUPPRESS)
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        if verb.config:
            # Read by ml_collections from the file itself; here only for --help.
            one.add_argument(
                "--config",
                metavar="FILE[:arg]",
                help="a get_config file, or a name such as demo or paper; --config.a.b=value overrides",
            )
        if verb.workdir:
            one.add_argument(
                "--workdir",
                type=os.path.expanduser,
                default="",
                metavar="DIR",
                help="where everything of the sweep lies",
            )
        verb.arguments(one)
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are ours, and those about the configuration, each of these as one `--key=value`."""
    ours: list[str] = []
    overrides: list[str] = []
    ahead = list(argv)
    while ahead:
        argument = ahead.pop(0)
        if not re.match(r"--(no)?config(\.|=|$)", argument):
            ours.append(argument)
        elif "=" in argument or argument.startswith("--noconfig") or not ahead or ahead[0].startswith("--"):
            overrides.append(argument)  # a boolean may stand without a value
        else:
            overrides.append(f"{argument}={ahead.pop(0)}")
    return ours, [
        re.sub("^--config=(~.*)", lambda found: f"--config={os.path.expanduser(found[1])}", o) for o in overrides
    ]
