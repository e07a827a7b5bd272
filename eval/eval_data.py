"""Load what evaluations read: batches of models, and the text that all models of a cohort share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from etils import epath

from eval.lm_loss import (
    Losses,
    Text,
    averages,
    lay_out,
    lm_loss,
    read_bytes,
    read_documents,
    summary,
    summary_of_errors,
)
from eval.results import Measured
from olmo_jax import checkpoint, model
from olmo_jax.cohort import Cohort, Shape
from olmo_jax.config.field import NOT_NEGATIVE, POSITIVE_WHOLE, Role, setting
from olmo_jax.config.validation import Settings, unique
from olmo_jax.console import say
from olmo_jax.data import tokenizer
from olmo_jax.data.shards import TokenIndex
from olmo_jax.execution.sharding import path_name
from olmo_jax.step import member_structs

T = TypeVar("T")
Model = tuple[str, int]  # run id and step


class StoppedError(Exception):
    """`EvalData.stop` returned True in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class TextConfig(Settings):
    """The text on which losses are measured."""

    tokens_per_domain: int = setting(
        16384,
        Role.OBSERVATION,
        "Validation tokens of each domain on which losses are measured.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    tokens_per_document: int = setting(
        0,
        Role.OBSERVATION,
        "Most tokens that a document contributes. With fewer, a domain's tokens come from more documents, and standard "
        "errors, which are over documents, are smaller. 0 takes whole documents.",
        bound=NOT_NEGATIVE,
        unit="tokens",
    )
    domains: tuple[str, ...] = setting((), Role.OBSERVATION, "Domains on which losses are measured; () for all.")
    batch_size: int = setting(
        32, Role.OBSERVATION, "Windows that the models process at a time.", bound=POSITIVE_WHOLE, unit="sequences"
    )
    all_checkpoints: bool = setting(
        True,
        Role.OBSERVATION,
        "Measure the loss by domain at every checkpoint, or else at the last, where most other evaluations run.",
    )

    @property
    def set_apart(self) -> tuple[str, ...]:
        """Return the domains that the average `out_of_domain` excludes because models are fine-tuned on them."""
        return ()

    @property
    def text_settings(self) -> dict[str, Any]:
        """Return what a loss depends on besides the models."""
        settings = {
            "tokens_per_domain": self.tokens_per_domain,
            "domains": list(self.domains),
            "set_apart": list(self.set_apart),
        }
        # Omitted where it has no effect, so that results written before it existed remain valid.
        return settings | ({"tokens_per_document": self.tokens_per_document} if self.tokens_per_document else {})

    def check_fields(self, at: str) -> None:
        unique(self.domains, f"{at}.domains")


@dataclasses.dataclass(frozen=True, eq=False)
class EvalData:
    """The data of one cohort, read when first used. `stop` returns whether to stop; long computations call it."""

    workdir: epath.Path
    cohort: Cohort
    index: TokenIndex
    config: TextConfig
    stop: Callable[[], bool] = lambda: False

    @functools.cached_property
    def shape(self) -> Shape:
        """Return the shape of the models as they are evaluated: with an unfactored head."""
        shape = self.cohort.shape
        return shape.with_config(model=dataclasses.replace(shape.model, factored_head=False))

    @functools.cached_property
    def documents(self) -> dict[str, list[np.ndarray]]:
        """Return validation documents by domain; for domains that weren't trained on, documents of any split."""
        config = self.config
        return read_documents(
            self.index, config.tokens_per_domain, self._learnt, config.domains, config.tokens_per_document
        )

    @property
    def _learnt(self) -> tuple[str, ...]:
        trained = self.shape.config.data.train_domains
        return (*trained, *self.config.set_apart) if trained else ()

    @functools.cached_property
    def text(self) -> Text:
        if single := [domain for domain, documents in self.documents.items() if len(documents) == 1]:
            say(
                f"{', '.join(single)}: one document fills config.evaluation.tokens_per_domain = "
                f"{self.config.tokens_per_domain}, so these losses have no standard error; raise it, or set "
                "config.evaluation.tokens_per_document"
            )
        bytes_K = read_bytes(self.index, self.documents, self._learnt, self.tokenizer)
        return lay_out(self.documents, self.index.eos_id, self.shape.sequence_length, bytes_K=bytes_K)

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.of_prepared(self.index.directory, self.index.eos_id)

    @functools.cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each matrix of a model, by its path."""
        params = member_structs(self.shape).params
        return {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params) if x.ndim == 2}

    def once(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(self, *arguments)`, computed on the first call only; arguments must be hashable."""
        key = (function, *arguments)
        if key not in self._results:
            self._results[key] = function(self, *arguments)
        return cast(T, self._results[key])

    @functools.cached_property
    def _results(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def load(self, models: Sequence[Model]) -> Any:
        """Return the stacked parameters of models. Raises CheckpointError if one doesn't fit its configuration."""
        parts, order = [], []
        for step in dict.fromkeys(step for _, step in models):
            members, params_M = checkpoint.load_stack(self.workdir, self.cohort.folder, step)
            place = checkpoint.directory(self.workdir, self.cohort.folder) / str(step)
            checkpoint.check_fits(place, params_M, self.cohort.shape.model, stacked=True)
            places = [m for m, (_, model_step) in enumerate(models) if model_step == step]
            order += places
            taken = np.array([members.index(models[m][0]) for m in places])
            parts.append(jax.tree.map(lambda x, taken=taken: x[taken], params_M))
        back = np.argsort(order)
        params_M = jax.tree.map(lambda *xs: jax.numpy.asarray(np.concatenate(xs)[back]), *parts)
        trained_as = self.cohort.shape.model
        return jax.vmap(lambda params: model.folded(trained_as, params)[1])(params_M)

    @functools.cached_property
    def load_last(self) -> Callable[[tuple[str, ...]], Any]:
        """Return a function that loads runs' last checkpoints; cached, since CKA uses them at each step."""
        ends = {run.id: run.config.total_steps for run in self.cohort.runs}
        return functools.lru_cache(maxsize=1)(lambda runs: self.load([(run, ends[run]) for run in runs]))


@dataclasses.dataclass(frozen=True, eq=False)
class ModelBatch:
    """M models of a cohort, each (run, step), and their parameters, loaded when first used."""

    eval_data: EvalData
    models: tuple[Model, ...]

    @functools.cached_property
    def params_M(self) -> Any:
        return self.eval_data.load(self.models)

    @functools.cached_property
    def losses(self) -> Losses:
        """Return the losses of the unchanged models."""
        return self.losses_of(self.params_M)

    def losses_of(self, params_M: Any) -> Losses:
        """Return the losses of stacked parameters of this architecture on the cohort's text."""
        return lm_loss(self.eval_data.shape.model, params_M, self.eval_data.text, self.eval_data.config.batch_size)

    def measured(self, losses: Losses) -> list[Measured]:
        """Return the results of each model: losses in nats per token, averages first, and the tokens by domain."""
        return [Measured(row, {"tokens": losses.tokens}) for row in self.summaries(losses.by_domain)]

    def measured_with_rise(self, losses: Losses, relative: bool = False) -> list[Measured]:
        """Return `measured` with the rise of each average above the unchanged models, and its paired standard error.

        `relative` adds the rise as a share of the loss of the unchanged models.
        """
        errors = self.summaries(losses.standard_errors(self.losses), errors=True)
        results = []
        for after, before, error in zip(
            self.measured(losses), self.summaries(self.losses.by_domain), errors, strict=True
        ):
            for name in self.averages:
                after.metrics[f"rise/{name}"] = after.metrics[name] - before[name]
                after.metrics[f"rise_standard_error/{name}"] = error[name]
                if relative:
                    after.metrics[f"relative_rise/{name}"] = after.metrics[f"rise/{name}"] / before[name]
            results.append(after)
        return results

    def summaries(self, by_domain: dict[str, np.ndarray], errors: bool = False) -> list[dict[str, float]]:
        """Return one row per model: averages, then domains; `errors` says that the values are standard errors."""
        summarize = summary_of_errors if errors else summary
        rows = [{d: float(v[m]) for d, v in by_domain.items()} for m in range(len(next(iter(by_domain.values()))))]
        return [summarize(row, *self._division) for row in rows]

    @property
    def averages(self) -> list[str]:
        """Return the names of the averages that are over at least one domain."""
        return list(averages(self.eval_data.text.domains, *self._division))

    @property
    def _division(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.eval_data.shape.config.data.train_domains, self.eval_data.config.set_apart
