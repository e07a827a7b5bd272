"""olmo-jax geometry"""

import argparse
import json
import os

from sweeps.verbs.verb import DONE, Command, Verb, json_argument


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        metavar="PATH",
        help="a working directory, a .safetensors file, a folder of these, a .npy file, or hub:OWNER/NAME, of which "
        "only the measured tensors are fetched",
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
        help="also measure without the directions that don't affect the logits after this norm: none, layer_norm, "
        "affine_layer_norm, rms_norm (default: the model's norm for the unembedding of a working directory's runs, "
        "else none)",
    )
    parser.add_argument(
        "--revisions", metavar="WHICH", help="of hub:OWNER/NAME, as `import` takes them (default: the last)"
    )
    json_argument(parser)


def _carry_out(command: Command) -> int:
    from sweeps.models import geometry

    arguments = command.arguments
    metrics = geometry.DEFAULT_METRICS if arguments.metrics is None else arguments.metrics.split(",")
    rows = geometry.measure(
        arguments.path,
        arguments.run,
        arguments.step,
        arguments.tensors,
        metrics,
        arguments.gauge,
        arguments.revisions or "",
    )
    if arguments.json:
        print(json.dumps(geometry.as_json(arguments.path, rows), allow_nan=False))
    else:
        print("\n".join(geometry.lines(rows)))
    return DONE


VERB = Verb(
    "geometry",
    "print a table of the geometry of any weights",
    "olmo-jax geometry model.safetensors --metrics=effective_rank,mean_cosine",
    _carry_out,
    _arguments,
)
