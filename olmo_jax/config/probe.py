"""What is measured while a run trains: see train.py."""

import dataclasses
import re

from olmo_jax.config.validation import ConfigError, one_of, require


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """What is measured of a target of the probe.

    Attributes:
      metrics: names registered in geometry.probe; () leaves the target out.
      every: steps between two measurements, counted from 0; 0: as the probe's `every` says.
      centred: measure the target without its mean row too, as `<target>_centred`.
      spectrum: beside the metrics, singular values at places 1, 2, 3, 4, 6, 8, 12 and so on, as `<target>_spectrum`.
    """

    metrics: tuple[str, ...] = ()
    every: int = 0
    centred: bool = False
    spectrum: bool = False

    def check(self, at: str) -> None:
        require(self.every >= 0, f"{at}.every", self.every, "needs 0 (as the probe) or a positive number of steps")


@dataclasses.dataclass(frozen=True)
class ParametersConfig(TargetConfig):
    """The matrices whose path, such as blocks_0/mlp/up, holds the regular expression `pattern`; a target each."""

    pattern: str = ""

    def check(self, at: str) -> None:
        super().check(at)
        require(
            not self.metrics or bool(self.pattern),
            f"{at}.pattern",
            self.pattern,
            f"says which parameters {at}.metrics are of, such as 'mlp/(up|down)$'",
        )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"{at}.pattern = {self.pattern!r}: is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class TextsConfig:
    """Loss, accuracy and the geometry of states on texts by name; nothing is measured without names.

    Attributes:
      names: "train", what the run learns from; "validation", what is held out of the same domains; or any domain, whose
        validation text is read. Of equations there are the first two.
      every: steps between two measurements, counted from 0; 0: as the probe's `every` says.
      states: of which tokens' states geometry is measured: "final_states", after the final norm, and "layer_0" and so
        on, after a block; the last block's are those before the final norm.
      metrics: names registered in geometry.probe; () for loss and accuracy alone.
      documents: the first so many of each text, after a BOS. document_tokens: of each document, BOS included.
      tokens: "all" takes every token but padding, "last" each document's last.
      drawn: so many of these tokens are drawn, the same each time; 0 takes all, in a random order (of equations as
        many as the members of a cohort all have).
      points: N, the first so many of the drawn states that repeat none before them are measured (paper B: 60,000).
      neighbors: size L of the neighbourhoods of local dimension (paper B: 128).
    """

    names: tuple[str, ...] = ()
    every: int = 0
    states: tuple[str, ...] = ("final_states",)
    metrics: tuple[str, ...] = (
        "local_two_nn",
        "local_two_nn_std",
        "local_two_nn_q5",
        "local_two_nn_q25",
        "local_two_nn_median",
        "local_two_nn_q75",
        "local_two_nn_q95",
        "points",
        "duplicates",
    )
    documents: int = 256
    document_tokens: int = 64
    tokens: str = "all"
    drawn: int = 0
    points: int = 2000
    neighbors: int = 128

    def check(self, at: str) -> None:
        require(self.every >= 0, f"{at}.every", self.every, "needs 0 (as the probe) or a positive number of steps")
        require(self.documents > 0, f"{at}.documents", self.documents, "needs at least 1")
        require(self.document_tokens > 1, f"{at}.document_tokens", self.document_tokens, "needs at least 2")
        require(self.drawn >= 0, f"{at}.drawn", self.drawn, "needs 0 (all) or a positive number of tokens")
        require(self.neighbors > 2, f"{at}.neighbors", self.neighbors, "needs at least 3")
        require(
            self.points > self.neighbors,
            f"{at}.points",
            self.points,
            f"a point among so many has fewer than {at}.neighbors = {self.neighbors} others; raise it, or lower that",
        )
        require(
            not self.drawn or self.drawn >= self.points,
            f"{at}.drawn",
            self.drawn,
            f"is fewer than {at}.points = {self.points}; raise it, or lower that",
        )
        require(
            len(set(self.names)) == len(self.names), f"{at}.names", self.names, "names a text twice; once is enough"
        )
        one_of(self.tokens, ("all", "last"), f"{at}.tokens")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Geometry measured in the loop: at step 0, every so many steps, and at every checkpoint.

    Attributes:
      every: steps between two measurements, counted from 0, of targets that say nothing else; 0 never measures them.
      unembedding: W without the rows that pad the vocabulary; raw, and as `unembedding_gauge_fixed` without what the
        logits can't see. embedding: likewise without padding, raw alone. parameters: other matrices, by path.
      final_states: states after the final norm. layers: states after each block, as `layer_0`, `layer_1` and so on.
      texts: loss, accuracy and geometry on texts by name, such as what is trained on against what isn't.
      documents: fixed validation documents, after a BOS, in each of `sets` disjoint sets whose states are measured.
      sets: the mean over them is reported and, as `<target>_spread`, the standard deviation.
      document_tokens: tokens of each document that are read, BOS included.
      tokens: "last" takes the state of each document's last token (paper A's H); "all" those of all tokens but BOS and
        padding; "sampled" `sampled_tokens` of these, always the same.
      sampled_tokens: of each set.
      neighbors: size L of the neighbourhoods of local dimension (paper B: 128).
    """

    every: int = 100
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
    documents: int = 128
    sets: int = 3
    document_tokens: int = 64
    tokens: str = "last"
    sampled_tokens: int = 1024
    neighbors: int = 128

    @property
    def reads_states(self) -> bool:
        """Whether anything is measured of states, so that documents are read."""
        return any(self.interval(target) and target.metrics for target in (self.final_states, self.layers))

    def interval(self, target: TargetConfig) -> int:
        """Steps between two measurements of a target; 0 for never."""
        return target.every or self.every

    def check(self, at: str) -> None:
        require(self.every >= 0, f"{at}.every", self.every, "needs 0 (never) or a positive number of steps")
        for name in ("documents", "document_tokens", "sampled_tokens"):
            require(getattr(self, name) > 1, f"{at}.{name}", getattr(self, name), "needs at least 2")
        require(self.sets > 0, f"{at}.sets", self.sets, "needs at least 1")
        require(self.neighbors > 2, f"{at}.neighbors", self.neighbors, "needs at least 3")
        one_of(self.tokens, ("last", "sampled", "all"), f"{at}.tokens")
