"""Measure the loss by domain on validation text, and the baseline of a unigram model."""

import numpy as np

from eval.columns import LOSSES
from eval.eval_data import EvalData, ModelBatch, TextConfig
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.lm_loss import Losses
from olmo_jax.config import ConfigError, require
from olmo_jax.data.windows import unigram_loss

# Names of other results beside the losses by domain; no domain may have one of them.
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


@evaluator
class Loss(Evaluator[TextConfig]):
    """Loss by domain and on average, with standard errors, bits per byte and perplexities, and by document."""

    kind = "lm_loss"
    config_type = TextConfig
    names = "lm_loss"
    results = LOSSES

    def evaluations(self) -> list[Evaluation]:
        return [Evaluation(self.kind, self.kind, self.text.text_settings, self.text.all_checkpoints)]

    def check(self, data: EvalData) -> None:
        domains, trained = data.index.domains, data.shape.config.data.train_domains
        for domain in sorted(_RESERVED & {*domains}):
            raise ConfigError(f"{self.key}: the data have a domain {domain!r}, but results use this name for "
                              "something else; rename the domain")  # fmt: skip
        for domain in self.text.domains:
            check_domain(f"{self.key}.domains", domain, data)
        if self.text.domains:
            remedy = f"contains no domain that was trained on ({', '.join(trained)}); add one of these"
            is_measured = not trained or bool({*trained} & {*self.text.domains})
            require(is_measured, f"{self.key}.domains", self.text.domains, remedy)

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        losses = models.losses
        errors, bits = models.summaries(losses.standard_errors(), True), models.summaries(losses.bits_per_byte)
        results = []
        for m, measured in enumerate(models.measured(losses)):
            metrics = dict(measured.metrics)
            for name, nats in measured.metrics.items():
                metrics[f"standard_error/{name}"] = errors[m][name]
                metrics[f"bits_per_byte/{name}"] = bits[m][name]
                metrics[f"perplexity/{name}"] = float(np.exp(nats))
            results.append(Measured(metrics, measured.more | {"documents": by_document(losses, m)}))
        return results


@evaluator
class Unigram(Evaluator[TextConfig]):
    """Loss of a unigram model of the training tokens on the same validation tokens, as a baseline."""

    kind = "unigram"
    names = "unigram"
    words = "Of a unigram model of the training tokens"
    of = {"model": "unigram"}
    results = LOSSES
    config_type = TextConfig

    def evaluations(self) -> list[Evaluation]:
        return [Evaluation(self.kind, self.kind, self.text.text_settings)]

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data = models.eval_data
        domains = data.shape.config.data.train_domains
        rows = {d: np.array([unigram_loss(data.index, domains, texts)]) for d, texts in data.documents.items()}
        tokens = {d: sum(map(len, texts)) for d, texts in data.documents.items()}
        return [Measured(models.summaries(rows)[0], {"tokens": tokens})] * len(models.models)


def by_document(losses: Losses, member: int) -> dict[str, dict[str, list[float]]]:
    """Return the summed nats and the tokens of each document, by domain, for paired comparisons between models."""
    text, results = losses.text, {}
    for place, domain in enumerate(text.domains):
        in_domain_K = text.domain_K == place
        nats = [round(x, 4) if np.isfinite(x) else x for x in losses.nats_MK[member, in_domain_K].tolist()]
        results[domain] = {"nats": nats, "tokens": text.tokens_K[in_domain_K].tolist()}
    return results


def check_domain(key: str, domain: str, data: EvalData) -> None:
    """Raise ConfigError for a domain that the data lack, or that has no documents."""
    index = data.index
    require(domain in index.domains, key, domain, f"isn't a domain of the data, which have {', '.join(index.domains)}")
    documents = sum(index.shard(split, domain).documents for split in ("train", "validation"))
    require(documents > 0, key, domain, "has no documents; remove it, or add text")
