"""Compute from shapes alone what a training step has to compute and move on a GPU: the lower bounds of docs/speed.md.

    python -m benchmarks.roofline [--width=768 --layers=8 ...] [--matmul=700e12] [--bandwidth=3.35e12]

Without a shape, it uses those of docs/speed.md. It runs no step. For each part it prints FLOPs, bytes to and from
memory, and the times that both take. Bytes are those of the step as it is written, with activations in bfloat16; each
kernel reads and writes its operands once, and caches aren't counted:
  projections   three matmuls each, with the two activations that each reads or writes; W in float32, cast and read, and
                the gradient of W
  element-wise  norms, rotary embedding, attention's operands, gate and residuals: 30 D per token and block forward,
                twice that backward (an estimate: XLA may fuse more or less)
  logits        the three matmuls of the vocabulary: logits written in float32, their gradient read twice in bfloat16
  loss          passes over the logits: read for their maximum, for the sum and for the gradient, which is written in
                bfloat16 (14 bytes per logit); each chunk's dW added to the earlier ones (12 bytes per entry)
  optimiser     84 bytes per parameter: two new moments (24) and new parameters (16), the norms of gradient and new
                parameters (8), and then the choice between old and new of all three (36)
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))  # where `benchmarks` is, if this file is run by its path

from olmo_jax import loss
from olmo_jax.config import ModelConfig
from olmo_jax.execution import flops
from olmo_jax.model import parameter_count

_HELD_LOGITS = 2**28  # see loss.py


class Work(NamedTuple):
    """What one part of a step needs: FLOPs in matmuls, and bytes to and from memory."""

    flops: float
    bytes: float

    def seconds(self, matmul: float, bandwidth: float) -> tuple[float, float]:
        """Return the seconds that the FLOPs and that the bytes take."""
        return self.flops / matmul, self.bytes / bandwidth


class Shape(NamedTuple):
    """A stack of members and the batch of each."""

    model: ModelConfig
    batch: int
    length: int
    members: int = 1

    @property
    def tokens(self) -> int:
        return self.members * self.batch * self.length

    @property
    def chunks(self) -> int:
        """Return into how many chunks of positions the loss splits the batch on an accelerator."""
        most = _HELD_LOGITS // self.members // (self.batch * self.model.padded_vocab_size)
        return -(-self.length // loss.even_chunk(self.length, max(1, min(most, self.length))))


def model_of(vocabulary: int, width: int, layers: int, heads: int) -> ModelConfig:
    """Return a model of OLMo's blocks."""
    return ModelConfig(vocab_size=vocabulary, d_model=width, n_layers=layers, n_heads=heads, d_ff=4 * width)


SHAPES = {
    "d 64, 32 members, V 4096": Shape(model_of(4096, 64, 4, 2), 8, 256, 32),
    "d 64 alone, V 4096": Shape(model_of(4096, 64, 4, 2), 8, 256),
    "17M in matmuls (4m) alone": Shape(model_of(50280, 256, 4, 8), 32, 1024),
    "d 768 (75m) alone": Shape(model_of(50280, 768, 8, 12), 32, 1024),
}


def work(shape: Shape) -> dict[str, Work]:
    """Return the work of each part of a training step of the whole stack."""
    m, d, t = shape.model, shape.model.d_model, shape.tokens
    vocabulary = m.padded_vocab_size
    entries = flops.matmul_parameters(m) - vocabulary * d
    total = flops.train_step(m, shape.batch, shape.length) * shape.members
    logits = vocabulary * t
    of_projections, of_logits = 6 * entries * t, 6 * logits * d
    widths = 8 * d + 3 * (d + m.d_ff)  # inputs and outputs of a block's projections, together
    of_weights = (4 + 2 + 3 * 2 + 2 + 4) * entries * shape.members
    parameters, _ = parameter_count(m)
    sums = 12 * shape.chunks * vocabulary * d * shape.members
    return {
        "projections": Work(of_projections, 6 * widths * m.n_layers * t + of_weights),
        "attention": Work(total - of_projections - of_logits, 2 * 12 * d * m.n_layers * t),
        "element-wise": Work(0, 3 * 2 * 30 * d * m.n_layers * t),
        "logits": Work(of_logits, 8 * logits),
        "loss": Work(0, 14 * logits + sums),
        "optimiser": Work(0, 84 * parameters * shape.members),
    }


def matmul_kernels(shape: Shape) -> int:
    """Return the number of matmuls per step in XLA, without attention: three per projection and per chunk of logits."""
    return 3 * 7 * shape.model.n_layers + 3 * shape.chunks


def table(shape: Shape, matmul: float, bandwidth: float) -> str:
    """Return a Markdown table of the parts, and their sum."""
    headings = "| part | GFLOP | GB | FLOP per byte | ms by FLOPs | ms by bytes |"
    lines = [headings, "| --- | --- | --- | --- | --- | --- |"]
    longest = 0.0
    for name, part in work(shape).items():
        by_flops, by_bytes = part.seconds(matmul, bandwidth)
        longest += max(by_flops, by_bytes)
        intensity = f"{part.flops / part.bytes:.0f}" if part.flops else ""
        cells = f"{part.flops / 1e9:,.0f} | {part.bytes / 1e9:.2f} | {intensity}"
        lines.append(f"| {name} | {cells} | {1e3 * by_flops:.2f} | {1e3 * by_bytes:.2f} |")
    rate = shape.tokens / longest
    total = f"{1e3 * longest:.2f} ms, {rate:,.0f} tokens/s; {matmul_kernels(shape)} matmuls"
    lines.append(f"\nSum of the longer ones: {total}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matmul", type=float, default=700e12, help="FLOP/s (default: 700e12, as measured on an H100)")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes/s (default: 3.35e12, an H100's)")
    parser.add_argument("--width", type=int, help="width of another shape, with the options below:")
    defaults = {"vocabulary": 50280, "layers": 4, "heads": 8, "batch": 32, "length": 1024, "members": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    shapes = SHAPES
    if arguments.width:
        model = model_of(arguments.vocabulary, arguments.width, arguments.layers, arguments.heads)
        shapes = {
            f"d {arguments.width}, {arguments.members} members": Shape(
                model, arguments.batch, arguments.length, arguments.members
            )
        }
    for name, shape in shapes.items():
        print(f"{name}\n\n{table(shape, arguments.matmul, arguments.bandwidth)}\n")


if __name__ == "__main__":
    main()
