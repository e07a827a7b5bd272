"""Check an evaluation's configuration against a cohort and its data, before anything is trained."""

import dataclasses
import re

import jax
from etils import epath

from eval.config import SCOPES, EvalConfig
from eval.eval_data import EvalData
from eval.evaluators.finetuning import domain_sets, item_sets
from olmo_jax.cohort import Cohort
from olmo_jax.config import ConfigError, require
from olmo_jax.data import DataError
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import task_items
from olmo_jax.data.windows import too_few_tokens
from olmo_jax.execution.sharding import path_name
from olmo_jax.probes.texts import evaluation_sets
from olmo_jax.step import member_structs

_AT = "config.evaluation"
# Names in results that stand beside the losses by domain, so that no domain may have them.
_RESERVED = {
    "in_domain",
    "out_of_domain",
    "macro",
    "target",
    "target_accuracy",
    "forgetting",
    "step",
    "tokens",
    "train_loss",
}


def check_evaluation(config: EvalConfig, cohort: Cohort, index: TokenIndex) -> None:
    """Raise ConfigError for a setting that the cohort or its data don't allow.

    Such as domains that don't exist or have no documents, patterns that match no matrix, group sizes that don't divide
    a matrix's inputs, and tasks that are unknown or can't be fine-tuned on.
    """
    _check_dimension(config, cohort, index)
    if cohort.shape.arithmetic:
        for key, value in (("finetune.targets", config.finetune.targets), ("tasks.names", config.tasks.names)):
            require(not value, f"{_AT}.{key}", value, "needs text, and the data have only equations; set it to ()")
        return
    for domain in sorted(_RESERVED & {*index.domains}):
        raise ConfigError(f"{_AT}: the data have a domain {domain!r}, but results use this name for something else; "
                          "rename the domain")  # fmt: skip
    for domain in config.domains:
        _check_domain(f"{_AT}.domains", domain, index)
    for domain in config.finetune.domains:
        _check_domain(f"{_AT}.finetune.targets", domain, index)
        lack = too_few_tokens(index, (domain,), cohort.shape.sequence_length)
        require(not lack, f"{_AT}.finetune.targets", domain, lack)
        documents = index.shard("validation", domain).documents
        remedy = "has no validation document; raise data.validation_fraction or add documents"
        require(documents > 0, f"{_AT}.finetune.targets", domain, remedy)
    for domain in config.finetune.domains:
        domain_sets(cohort.shape, index, domain)
    for split, key, names in (
        ("train", "finetune.targets", config.finetune.tasks),
        ("validation", "finetune.targets", config.finetune.tasks),
        ("validation", "tasks.names", config.tasks.names),
    ):
        for name in names:
            _check_task(f"{_AT}.{key}", name, split)
    for name in config.finetune.tasks:
        item_sets(EvalData(epath.Path(), cohort, index, config), name, config.finetune)
    _check_matrices(config, cohort)
    _check_measured(config, cohort)


def _check_dimension(config: EvalConfig, cohort: Cohort, index: TokenIndex) -> None:
    """Check that there are texts, with enough states, for the configured numbers of points and neighbours."""
    value = config.dimension.points
    if not value:
        return
    texts = dataclasses.replace(
        cohort.shape.config.probe.texts, points=max(value), neighbors=max(config.dimension.neighbors)
    )
    require(bool(texts.names), f"{_AT}.dimension.points", value, "needs texts; name some in config.train.probe.texts")
    try:
        evaluation_sets(
            [
                dataclasses.replace(r.config, probe=dataclasses.replace(r.config.probe, texts=texts))
                for r in cohort.runs
            ],
            index,
        )
    except ConfigError as error:
        raise ConfigError(f"{_AT}.dimension.points = {value!r}: {error}") from error


def _check_measured(config: EvalConfig, cohort: Cohort) -> None:
    """Check that the domains behind fine-tuning and saturation are measured, and that rows fit the model's context."""
    trained = cohort.shape.config.data.train_domains
    if config.domains:
        remedy = f"contains no domain that was trained on ({', '.join(trained)}); add one of these"
        require(not trained or bool({*trained} & {*config.domains}), f"{_AT}.domains", config.domains, remedy)
        for target in config.finetune.domains:
            remedy = f"doesn't contain the fine-tuning target {target!r}; add it"
            require(target in config.domains, f"{_AT}.domains", config.domains, remedy)
    most = cohort.shape.model.context_length
    for key, tokens, used in (
        ("finetune.item_tokens", config.finetune.item_tokens, config.finetune.tasks),
        ("tasks.tokens", config.tasks.tokens, config.tasks.names),
    ):
        require(not used or tokens <= most, f"{_AT}.{key}", tokens, f"is more than the model's context of {most}")


def _check_domain(key: str, domain: str, index: TokenIndex) -> None:
    require(domain in index.domains, key, domain, f"isn't a domain of the data, which have {', '.join(index.domains)}")
    documents = sum(index.shard(split, domain).documents for split in ("train", "validation"))
    require(documents > 0, key, domain, "has no documents; remove it, or add text")


def _check_task(key: str, name: str, split: str) -> None:
    try:
        task_items.sources(name)
        if name not in task_items.TASKS:
            task_items.items(name, split)  # the name is a user's file
    except DataError as error:
        raise ConfigError(f"{key}: {error}") from None
    known = task_items.TASKS.get(name)
    has_split = known is None or split in known.folders
    having = ", ".join(other for other, task in task_items.TASKS.items() if split in task.folders)
    require(has_split, key, name, f"has no {split} items; these tasks have: {having}")


def _check_matrices(config: EvalConfig, cohort: Cohort) -> None:
    params = member_structs(cohort.shape).params
    matrices = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params) if x.ndim == 2}
    known = f"matches no matrix; the matrices are {', '.join(list(matrices)[:8])}, ..."
    chosen = config.quantize
    for scope in chosen.scopes if chosen.bits and chosen.methods else ():
        pattern = SCOPES.get(scope, scope)
        if "unembedding" not in matrices and re.fullmatch(pattern, "unembedding"):
            pattern = f"{pattern}|embedding"  # a tied embedding serves as both
        matched = {path: shape for path, shape in matrices.items() if re.fullmatch(pattern, path)}
        require(bool(matched), f"{_AT}.quantize.scopes", scope, known)
        for path, shape in matched.items():
            inputs = shape[1] if path in ("embedding", "unembedding", "positions") else shape[0]
            remedy = f"doesn't divide the {inputs} inputs of {path}; choose a divisor, or granularity 'channel'"
            require(
                not chosen.group_size or inputs % chosen.group_size == 0,
                f"{_AT}.quantize.group_size",
                chosen.group_size,
                remedy,
            )
    if config.perturb.relative or config.perturb.absolute:
        pattern = config.perturb.pattern
        require(any(re.fullmatch(pattern, path) for path in matrices), f"{_AT}.perturb.pattern", pattern, known)
