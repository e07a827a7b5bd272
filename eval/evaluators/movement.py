"""Measure how far matrices moved since the checkpoint before."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.columns import Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from olmo_jax.checkpoint import run_steps
from olmo_jax.cohort import checkpoint_steps
from olmo_jax.config import require
from olmo_jax.config.field import Role, setting
from olmo_jax.config.validation import Settings, regular_expression
from olmo_jax.execution.sharding import path_name


@dataclasses.dataclass(frozen=True)
class MovementConfig(Settings):
    """How far matrices moved between checkpoints."""

    pattern: str = setting(
        "",
        Role.OBSERVATION,
        'Regular expression that the whole path of a matrix has to match, such as "unembedding"; "" for none.',
    )

    def check_fields(self, at: str) -> None:
        regular_expression(self.pattern, f"{at}.pattern")


@evaluator
class Movement(Evaluator[MovementConfig]):
    """Cosine of each matrix with that of the run's checkpoint before, and the growth of its norm per ln(tokens).

    NaN at a run's first checkpoint. Growth is NaN also since step 0.
    """

    kind = "movement"
    names = "movement"
    section = "movement"
    config_type = MovementConfig
    needs_text = False
    of_whole_runs = True
    results = (
        Result("cosine/(?P<matrix>.+)", "Cosine of {matrix} with that of the checkpoint before", "", "geometry"),
        Result(
            "norm_growth/(?P<matrix>.+)",
            "Growth of ln of the Frobenius norm of {matrix} since the checkpoint before, per ln(tokens)",
            "",
            "geometry",
        ),
    )

    def evaluations(self) -> list[Evaluation]:
        if not self.config.pattern:
            return []
        return [Evaluation(self.kind, self.kind, self.section_settings, everywhere=True)]

    def check(self, data: EvalData) -> None:
        require(
            not self.config.pattern or any(re.fullmatch(self.config.pattern, name) for name in data.matrices),
            f"{self.key}.pattern",
            self.config.pattern,
            f"matches no matrix; there are {', '.join(sorted(data.matrices))}",
        )

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data, pattern = models.eval_data, evaluation.settings["pattern"]
        before = [_before(data, run, step) for run, step in models.models]
        known = [(run, s) for (run, _), s in zip(models.models, before, strict=True) if s is not None]
        now = _chosen(models.params_M, pattern)
        then = _chosen(data.load(known), pattern) if known else {}
        rows, k = [], 0
        for m, (_, step) in enumerate(models.models):
            earlier_step = before[m]
            if earlier_step is None:
                values = dict.fromkeys(now, (math.nan, math.nan))
            else:
                per_ln = math.log(step / earlier_step) if earlier_step else math.nan  # ln(0)
                values = {name: _moved(then[name][k], w_M[m], per_ln) for name, w_M in now.items()}
                k += 1
            rows.append(
                Measured(
                    {f"cosine/{name}": cosine for name, (cosine, _) in values.items()}
                    | {f"norm_growth/{name}": growth for name, (_, growth) in values.items()},
                    {"since": earlier_step},
                )
            )
        return rows


def _before(data: EvalData, run: str, step: int) -> int | None:
    """Return the step of a run's checkpoint before, None if there is none; one of an interruption doesn't count."""
    imported = any(other.config.imported for other in data.cohort.runs if other.id == run)
    due = checkpoint_steps(data.cohort)
    earlier = [s for s in run_steps(data.workdir, run) if s < step and (imported or s in due)]
    return max(earlier, default=None)


def _chosen(params_M: Any, pattern: str) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params_M)
    return {path_name(path): x for path, x in leaves if x.ndim == 3 and re.fullmatch(pattern, path_name(path))}


def _moved(before: Any, after: Any, per_ln: float) -> tuple[float, float]:
    """Return the cosine of two matrices, and the growth of ln of the norm over `per_ln`, in float64."""
    a, b = (np.asarray(jnp.asarray(x), np.float64) for x in (before, after))
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if not all(norms):
        return math.nan, math.nan
    return float(np.sum(a * b) / (norms[0] * norms[1])), float(np.log(norms[1] / norms[0]) / per_ln)
