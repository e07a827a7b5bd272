"""What is measured while a run trains: see train.py."""

import dataclasses
from typing import Any

from olmo_jax.config.field import Bound, Role, at_least, choice, setting
from olmo_jax.config.validation import Settings, regular_expression, require

_AT_LEAST_TWO = at_least(2, "needs at least 2")
_NONE_OR_TWO = Bound("0 or >= 2", "needs 0 (not measured) or at least 2", lambda value: value == 0 or value >= 2)


def _every() -> Any:
    return setting(
        0,
        Role.OBSERVATION,
        "Steps between two measurements, counted from 0; 0: the probe's `every`.",
        bound=at_least(0, "needs 0 (as the probe) or a positive number of steps"),
        unit="steps",
    )


def _document_tokens() -> Any:
    meaning = "Tokens of each document that are read, BOS included."
    return setting(64, Role.OBSERVATION, meaning, bound=_AT_LEAST_TWO, unit="tokens")


def _neighbors() -> Any:
    meaning = "Size L of the neighbourhoods that local dimensions are estimated in (paper B: 128)."
    return setting(128, Role.OBSERVATION, meaning, bound=at_least(3, "needs at least 3"))


@dataclasses.dataclass(frozen=True)
class TargetConfig(Settings):
    """What is measured of a target of the probe."""

    metrics: tuple[str, ...] = setting(
        (), Role.OBSERVATION, "Names registered in geometry.probe; () leaves the target out."
    )
    every: int = _every()
    centred: bool = setting(
        False, Role.OBSERVATION, "Also measure the target without its mean row, as `<target>_centred`."
    )
    spectrum: bool = setting(
        False,
        Role.OBSERVATION,
        "Also record the 1st, 2nd, 3rd, 4th, 6th, 8th, 12th (and so on) singular value, as `<target>_spectrum`.",
    )


@dataclasses.dataclass(frozen=True)
class ParametersConfig(TargetConfig):
    """The matrices in whose path, such as blocks_0/mlp/up, the expression `pattern` matches; each is a target."""

    pattern: str = setting(
        "", Role.OBSERVATION, "Regular expression that has to match somewhere in the path of a matrix."
    )

    def check_fields(self, at: str) -> None:
        require(
            not self.metrics or bool(self.pattern),
            f"{at}.pattern",
            self.pattern,
            f"has to say which parameters {at}.metrics are measured of, such as 'mlp/(up|down)$'",
        )
        regular_expression(self.pattern, f"{at}.pattern")


@dataclasses.dataclass(frozen=True)
class TextsConfig(Settings):
    """Loss, accuracy and the geometry of states on named texts; nothing is measured without names."""

    names: tuple[str, ...] = setting(
        (),
        Role.OBSERVATION,
        'Texts: "train", what the run is trained on; "validation", what is held out of the same domains; or the name '
        "of a domain, whose validation text is read. For equations only the first two exist.",
    )
    every: int = _every()
    states: tuple[str, ...] = setting(
        ("final_states",),
        Role.OBSERVATION,
        'States whose geometry is measured: "final_states", after the final norm, and "layer_0" and so on, after a '
        "block; the last block's are those before the final norm.",
    )
    metrics: tuple[str, ...] = setting(
        (
            "local_two_nn",
            "local_two_nn_std",
            "local_two_nn_q5",
            "local_two_nn_q25",
            "local_two_nn_median",
            "local_two_nn_q75",
            "local_two_nn_q95",
            "points",
            "duplicates",
        ),
        Role.OBSERVATION,
        "Names registered in geometry.probe; () for loss and accuracy only.",
    )
    documents: int = setting(
        256,
        Role.OBSERVATION,
        "Documents that are read of each text, the first ones, each after a BOS.",
        bound=at_least(1, "needs at least 1"),
    )
    document_tokens: int = _document_tokens()
    tokens: str = setting(
        "all",
        Role.OBSERVATION,
        'Tokens whose states are taken: "all" except padding, or the "last" of each document.',
        bound=choice("all", "last"),
    )
    drawn: int = setting(
        0,
        Role.OBSERVATION,
        "Tokens that are drawn from these at random, the same each time; 0 takes all, in a random order (of equations, "
        "as many as every member of the cohort has).",
        bound=at_least(0, "needs 0 (all) or a positive number of tokens"),
        unit="tokens",
    )
    points: int = setting(
        2000,
        Role.OBSERVATION,
        "N, the number of states that are measured: the first distinct ones of those drawn (paper B: 60,000).",
    )
    neighbors: int = _neighbors()

    def check_fields(self, at: str) -> None:
        require(
            self.points > self.neighbors,
            f"{at}.points",
            self.points,
            f"leaves a point fewer than {at}.neighbors = {self.neighbors} others; raise it, or lower that",
        )
        require(
            not self.drawn or self.drawn >= self.points,
            f"{at}.drawn",
            self.drawn,
            f"is fewer than {at}.points = {self.points}; raise it, or lower that",
        )
        require(
            len(set(self.names)) == len(self.names), f"{at}.names", self.names, "names a text twice; name each once"
        )


@dataclasses.dataclass(frozen=True)
class SharpnessConfig(Settings):
    """How sharp the loss is around the weights, as `sharpness/critical` and so on; 0 documents: not measured."""

    documents: int = setting(
        0,
        Role.OBSERVATION,
        "Documents of the probe, the first ones, on whose mean loss the critical sharpness along its gradient is "
        "measured, in about ten forward passes; 0 for none.",
        bound=at_least(0, "needs 0 (none) or a positive number of documents"),
    )
    every: int = _every()
    draws: int = setting(
        0,
        Role.OBSERVATION,
        "Vectors of the estimate of the Hessian's trace, each of which costs about two gradients; 0 for no trace.",
        bound=_NONE_OR_TWO,
    )
    lanczos_steps: int = setting(
        0,
        Role.OBSERVATION,
        "Steps to the Hessian's largest eigenvalue, each of which costs about two gradients; 0 for none.",
        bound=_NONE_OR_TWO,
    )

    def check_fields(self, at: str) -> None:
        for name in ("draws", "lanczos_steps"):
            value = getattr(self, name)
            require(
                self.documents > 0 or not value,
                f"{at}.{name}",
                value,
                f"has no effect without {at}.documents; name how many documents the loss is measured on",
            )


@dataclasses.dataclass(frozen=True)
class ProbeConfig(Settings):
    """Geometry measured during training: at step 0, every `every` steps, and at every checkpoint.

    unembedding is W without the rows that pad the vocabulary; raw, and as `unembedding_gauge_fixed` without what
    predictions don't depend on. embedding: likewise without padding, only raw. parameters: other matrices, by path.
    final_states: states after the final norm. layers: states after each block, as `layer_0`, `layer_1` and so on.
    texts: loss, accuracy and geometry on named texts, such as what is trained on and what is held out.
    sharpness: curvature of the loss on the documents that states are taken from.
    """

    every: int = setting(
        100,
        Role.OBSERVATION,
        "Steps between two measurements, counted from 0, of targets whose own `every` is 0; 0: never.",
        bound=at_least(0, "needs 0 (never) or a positive number of steps"),
        unit="steps",
    )
    unembedding: TargetConfig = TargetConfig(
        metrics=("effective_rank", "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy"),
        spectrum=True,
    )
    embedding: TargetConfig = TargetConfig()
    parameters: ParametersConfig = ParametersConfig()
    final_states: TargetConfig = TargetConfig(
        metrics=("effective_rank", "effective_rank_percent", "mean_cosine", "isoscore", "points", "rank_cap")
    )
    layers: TargetConfig = TargetConfig()
    texts: TextsConfig = TextsConfig()
    sharpness: SharpnessConfig = SharpnessConfig()
    documents: int = setting(
        128,
        Role.OBSERVATION,
        "Fixed validation documents, each after a BOS, in each of `sets` disjoint sets whose states are measured.",
        bound=_AT_LEAST_TWO,
    )
    sets: int = setting(
        3,
        Role.OBSERVATION,
        "Sets of documents: the mean over them is reported and, as `<target>_spread`, the standard deviation.",
        bound=at_least(1, "needs at least 1"),
    )
    document_tokens: int = _document_tokens()
    tokens: str = setting(
        "last",
        Role.OBSERVATION,
        'Tokens whose states are taken: "last", that of each document (paper A\'s H); "all", except BOS and padding; '
        '"sampled", `sampled_tokens` of these, always the same.',
        bound=choice("last", "sampled", "all"),
    )
    sampled_tokens: int = setting(
        1024,
        Role.OBSERVATION,
        'States of each set that are measured where tokens is "sampled".',
        bound=_AT_LEAST_TWO,
        unit="tokens",
    )
    neighbors: int = _neighbors()
    alignment: int = setting(
        0,
        Role.OBSERVATION,
        "Principal directions of the final states that are compared with as many of the unembedding, wherever final "
        "states are measured; 0 for no measures of alignment.",
        bound=at_least(0, "needs 0 (none) or a positive number of directions"),
    )

    def check_fields(self, at: str) -> None:
        require(
            self.sharpness.documents <= self.documents * self.sets,
            f"{at}.sharpness.documents",
            self.sharpness.documents,
            f"is more than the probe reads, {self.documents * self.sets} ({at}.documents x {at}.sets); lower it, or "
            "raise those",
        )

    @property
    def reads_states(self) -> bool:
        """Whether anything is measured of states."""
        return any(self.interval(target) and target.metrics for target in (self.final_states, self.layers))

    @property
    def measures_sharpness(self) -> bool:
        return bool(self.interval(self.sharpness) and self.sharpness.documents)

    @property
    def reads_documents(self) -> bool:
        """Whether anything is measured on documents."""
        return self.reads_states or self.measures_sharpness

    def interval(self, target: TargetConfig | SharpnessConfig) -> int:
        """Return the steps between two measurements of a target; 0 for never."""
        return target.every or self.every
