"""What text, or what else, a run learns from: see train.py."""

import dataclasses
import math
import re

from olmo_jax.config.validation import folder_name, one_of, require

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
OPERATIONS = ("add", "subtract", "divide", "permute")


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
    """All equations a o b = c of a small group, of which a run sees some: what the corpus "arithmetic" consists of.

    Attributes:
      operation: "add", "subtract" or "divide" modulo a number, the last for primes and without b = 0; or "permute", the
        product of two permutations, first b, then a.
      modulus: p; for "permute" how many things are permuted, so that there are p! elements (Power et al. 2022: 5).
      train_fraction: share of the equations, drawn by config.data_seed, that the run learns from; the others are its
        validation. The same seed's equations at a smaller share are among those at a larger one.
    """

    operation: str = "add"
    modulus: int = 97
    train_fraction: float = 0.5

    @property
    def elements(self) -> int:
        """Of the group."""
        return math.factorial(self.modulus) if self.operation == "permute" else self.modulus

    @property
    def equations(self) -> int:
        """How many there are."""
        return self.elements * (self.elements - (self.operation == "divide"))

    @property
    def train_equations(self) -> int:
        """How many a run learns from."""
        return round(self.train_fraction * self.equations)

    def check(self, at: str) -> None:
        one_of(self.operation, OPERATIONS, f"{at}.operation")
        most = 6 if self.operation == "permute" else 1000
        remedy = f"needs a whole number from 2 to {most} with {at}.operation = {self.operation!r}"
        require(2 <= self.modulus <= most, f"{at}.modulus", self.modulus, remedy)
        prime = all(self.modulus % k for k in range(2, math.isqrt(self.modulus) + 1))
        require(
            prime or self.operation != "divide",
            f"{at}.modulus",
            self.modulus,
            "isn't prime, so that not every number can be divided by; choose a prime, or another operation",
        )
        require(
            0 < self.train_equations < self.equations,
            f"{at}.train_fraction",
            self.train_fraction,
            f"trains on {max(0, self.train_equations)} of {self.equations} equations; at least one has to be trained "
            "on and one to be left for validation",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    r"""What text the run sees, and in what portions.

    Attributes:
      name: folder of the prepared data below the root; runs of a sweep with different data need different names.
      root: where prepared data lie; "" is WORKDIR/data. A place, so no part of a run's identity.
      corpus: "python_packages"; "debian_prose", manuals, dictionaries and books out of Debian packages (fetched with
        apt-get, 160 MB); "olmo_tasks", OLMo's evaluation tasks as text (fetched with pip, 145 MB); several of these
        joined by "+"; "text_files"; "arithmetic", no text but the equations of `arithmetic`; or the name of a TFDS data
        set with `text` that lies in `tfds_dir`.
      tfds_dir: TFDS data directory of a data set that is there already; a place, no part of the identity.
      files: paths and globs of the user's .txt, .jsonl, .json (of one object a line; also .gz and .zst of these) and
        .parquet, for the corpus "text_files". A .txt is one document, a line or row of the others another.
      text_field, domain_field: fields of .jsonl, .json, .parquet or TFDS examples; "meta.source" is a field within a
        field, but for TFDS. No domain field: one domain, "text".
      document_separator: text between the documents of a .txt, such as "<|endoftext|>"; \n, \t, \r and \\ are escapes,
        and line ends are \n whatever the file has. "": a .txt is one document.
      block_characters: a document of `files` that is longer is cut into blocks of at most so many characters, where a
        line or word ends, each a document; 0: never. Of one large text it makes what can be split; blocks of one text
        are then trained on and validated on.
      max_megabytes: cap, in 1e6 bytes, on the text of each domain of "debian_prose" and "olmo_tasks", and of each kind
        that "python_packages" takes: training prose, held-out prose, code.
      tokenizer: "bpe" trains a byte-level BPE of `bpe_vocab_size` on the training documents; "olmo" is OLMo-1's (50280
        tokens) and "olmo2" OLMo-2's (100278), fetched with pip; else the path of a tokenizer.json, with a "/" in it or
        ".json" at its end.
      bpe_megabytes: train the BPE on at most so many 1e6 bytes, the training documents whose SHA-256 come first: a
        sample of the whole corpus. 0: on all of them.
      eos_token: the tokenizer's token that ends, and in evaluation begins, a document.
      train_domains: domains that training draws from; () takes all.
      validation_fraction: share of documents, by hash, that training never sees.
      sequence_length: L. batch_size: sequences a step.
      max_epochs: a budget that passes the training tokens more often than this is refused; no part of the identity.
      arithmetic: what equations there are, for the corpus "arithmetic". Its batches are drawn with replacement, its
        loss is that of the answer, and its sequence_length is 4, a window being "a o b =" (paper B's grokking).
    """

    name: str = "main"
    root: str = ""
    corpus: str = "python_packages"
    tfds_dir: str = ""
    files: tuple[str, ...] = ()
    text_field: str = "text"
    domain_field: str = ""
    document_separator: str = ""
    block_characters: int = 0
    max_megabytes: float = 24.0
    tokenizer: str = "bpe"
    bpe_vocab_size: int = 4096
    bpe_megabytes: float = 0.0
    eos_token: str = "<|endoftext|>"
    train_domains: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    sequence_length: int = 1024
    batch_size: int = 128
    max_epochs: float = 1.0
    arithmetic: ArithmeticConfig = ArithmeticConfig()

    @property
    def is_arithmetic(self) -> bool:
        """Whether the run learns equations, not text."""
        return self.corpus == "arithmetic"

    @property
    def separator(self) -> str:
        """`document_separator` with its escapes replaced."""
        return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], self.document_separator)

    @property
    def source(self) -> "DataConfig":
        """Less what differs between runs that share prepared data."""
        shared = dataclasses.replace(self.arithmetic, train_fraction=0.5)
        return dataclasses.replace(self, batch_size=1, sequence_length=1, max_epochs=1.0, arithmetic=shared)

    def check(self, at: str) -> None:
        for name in ("corpus", "text_field", "tokenizer", "eos_token"):
            require(bool(getattr(self, name)), f"{at}.{name}", getattr(self, name), "must not be empty")
        folder_name(self.name, f"{at}.name")
        for name in ("batch_size", "sequence_length"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive whole number")
        require(
            self.bpe_vocab_size >= 257,
            f"{at}.bpe_vocab_size",
            self.bpe_vocab_size,
            "a byte-level BPE has 256 bytes and the end-of-text token, so at least 257",
        )
        require(
            0 <= self.bpe_megabytes < math.inf,
            f"{at}.bpe_megabytes",
            self.bpe_megabytes,
            "needs a positive number of megabytes, or 0 to train the tokenizer on all of the text",
        )
        for name in ("max_megabytes", "max_epochs"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive number")
        require(
            self.tokenizer in ("bpe", "olmo", "olmo2") or "/" in self.tokenizer or self.tokenizer.endswith(".json"),
            f"{at}.tokenizer",
            self.tokenizer,
            "is none of 'bpe', 'olmo' and 'olmo2', nor a path: that has a '/' or ends in .json",
        )
        require(
            0 < self.validation_fraction < 1,
            f"{at}.validation_fraction",
            self.validation_fraction,
            "needs a number between 0 and 1",
        )
        require(
            self.corpus != "text_files" or bool(self.files),
            f"{at}.files",
            self.files,
            "corpus 'text_files' needs at least one path or glob",
        )
        for name in ("document_separator", "block_characters"):
            require(
                self.corpus == "text_files" or not getattr(self, name),
                f"{at}.{name}",
                getattr(self, name),
                f"divides the files of the corpus 'text_files', and this one is {self.corpus!r}; leave it out",
            )
        require(
            self.block_characters >= 0,
            f"{at}.block_characters",
            self.block_characters,
            "needs a positive whole number, or 0 to leave documents whole",
        )
        require(
            not (self.is_arithmetic and self.train_domains),
            f"{at}.train_domains",
            self.train_domains,
            "equations have no domains; make it ()",
        )
        require(
            self.sequence_length == 4 or not self.is_arithmetic,
            f"{at}.sequence_length",
            self.sequence_length,
            "must be 4 with the corpus 'arithmetic', whose windows are \"a o b =\"",
        )
