"""The configuration of the data that a run is trained on: see train.py."""

import dataclasses
import math
import re

from olmo_jax.config.field import NOT_EMPTY, POSITIVE, POSITIVE_WHOLE, Bound, Role, at_least, choice, reset, setting
from olmo_jax.config.validation import Settings, folder_name, require

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
OPERATIONS = ("add", "subtract", "divide", "permute")


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig(Settings):
    """The corpus "arithmetic": all equations a o b = c of a small group, on some of which a run is trained."""

    operation: str = setting(
        "add",
        Role.DATA,
        'Operation of the equations: "add", "subtract" or "divide" modulo a number, the last for primes only and '
        'without b = 0; or "permute", the product of two permutations, first b, then a.',
        bound=choice(*OPERATIONS),
    )
    modulus: int = setting(
        97,
        Role.DATA,
        'Modulus p; for "permute" the number of objects permuted, so that the group has p! elements (Power et al. '
        "2022: 5).",
    )
    train_fraction: float = setting(
        0.5,
        Role.TRACED,
        "Share of the equations, drawn with config.data_seed, that the run is trained on. The others are its "
        "validation set. With the same seed, the equations of a smaller share are among those of a larger one.",
        unit="share",
    )

    @property
    def elements(self) -> int:
        """Number of elements of the group."""
        return math.factorial(self.modulus) if self.operation == "permute" else self.modulus

    @property
    def equations(self) -> int:
        """Number of equations."""
        return self.elements * (self.elements - (self.operation == "divide"))

    @property
    def train_equations(self) -> int:
        """Number of equations that a run is trained on."""
        return round(self.train_fraction * self.equations)

    def check_fields(self, at: str) -> None:
        most = 6 if self.operation == "permute" else 1000
        remedy = f"needs a whole number from 2 to {most} with {at}.operation = {self.operation!r}"
        require(2 <= self.modulus <= most, f"{at}.modulus", self.modulus, remedy)
        prime = all(self.modulus % k for k in range(2, math.isqrt(self.modulus) + 1))
        require(
            prime or self.operation != "divide",
            f"{at}.modulus",
            self.modulus,
            "isn't prime, so that division by some numbers isn't defined; choose a prime, or another operation",
        )
        require(
            0 < self.train_equations < self.equations,
            f"{at}.train_fraction",
            self.train_fraction,
            f"trains on {max(0, self.train_equations)} of {self.equations} equations; choose a share that "
            "leaves at least one for training and one for validation",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """The text that the run sees, and the size of its windows and batches."""

    name: str = setting(
        "main",
        Role.PLACE,
        "Folder of the prepared data below the root. Runs of a sweep with different data need different names.",
    )
    root: str = setting("", Role.PLACE, 'Folder of all prepared data; "" is WORKDIR/data.')
    corpus: str = setting(
        "python_packages",
        Role.DATA,
        'Corpus: "python_packages"; "debian_prose", manuals, dictionaries and books from Debian packages (fetched '
        'with apt-get, 160 MB); "olmo_tasks", OLMo\'s evaluation tasks as text (fetched with pip, 145 MB); several of '
        'these joined by "+"; "text_files"; "arithmetic", no text but the equations of `arithmetic`; or the name of a '
        "TFDS data set with the field `text_field` in `tfds_dir`.",
        bound=NOT_EMPTY,
    )
    tfds_dir: str = setting("", Role.PLACE, "TFDS data directory, in which the data set has been prepared already.")
    files: tuple[str, ...] = setting(
        (),
        Role.DATA,
        'Paths and globs of the user\'s files, for the corpus "text_files": .txt, .jsonl, .json (one object per line; '
        "also .gz and .zst of these) and .parquet. A .txt is one document, and so is each line or row of the others.",
    )
    text_field: str = setting(
        "text",
        Role.DATA,
        'Field of .jsonl, .json, .parquet or TFDS examples that holds the text; "meta.source" is a nested '
        "field (not for TFDS).",
        bound=NOT_EMPTY,
    )
    domain_field: str = setting(
        "", Role.DATA, 'Field of an example that holds its domain; "": all are of one domain, "text".'
    )
    document_separator: str = setting(
        "",
        Role.DATA,
        r'Text between the documents of a .txt, such as "<|endoftext|>"; \n, \t, \r and \\ are escapes, and line ends '
        r'are read as \n whatever the file has. "": a .txt is one document.',
    )
    block_characters: int = setting(
        0,
        Role.DATA,
        "Largest size of a document of `files`: longer ones are cut, at the end of a line or word, into blocks that "
        "count as documents; 0: never. One large text can thus be split, and then training and validation have blocks "
        "of the same text.",
        bound=at_least(0, "needs a positive whole number, or 0 to leave documents whole"),
        unit="characters",
    )
    max_megabytes: float = setting(
        24.0,
        Role.DATA,
        'Cap on the text of each domain of "debian_prose" and "olmo_tasks", and of each kind that "python_packages" '
        "takes: training prose, held-out prose, code.",
        bound=POSITIVE,
        unit="1e6 bytes",
    )
    tokenizer: str = setting(
        "bpe",
        Role.DATA,
        'Tokenizer: "bpe" trains a byte-level BPE of `bpe_vocab_size` on the training documents; "olmo" is OLMo-1\'s '
        '(50280 tokens) and "olmo2" OLMo-2\'s (100278), fetched with pip; otherwise the path of a tokenizer.json, '
        'which contains "/" or ends in ".json".',
        bound=NOT_EMPTY,
    )
    bpe_vocab_size: int = setting(
        4096,
        Role.DATA,
        'Tokens of the tokenizer that is trained for "bpe".',
        bound=at_least(257, "a byte-level BPE has 256 bytes and the end-of-text token, so at least 257"),
        unit="tokens",
    )
    bpe_megabytes: float = setting(
        0.0,
        Role.DATA,
        "Maximum size of the text that the BPE is trained on: the training documents with the lowest SHA-256, a sample "
        "of the whole corpus. 0: all of them.",
        bound=at_least(0, "needs a positive number of megabytes, or 0 to train the tokenizer on all of the text"),
        unit="1e6 bytes",
    )
    eos_token: str = setting(
        "<|endoftext|>",
        Role.DATA,
        "The tokenizer's token that ends, and in evaluation begins, a document.",
        bound=NOT_EMPTY,
    )
    train_domains: tuple[str, ...] = setting((), Role.STATIC, "Domains that training draws from; () takes all.")
    validation_fraction: float = setting(
        0.1,
        Role.DATA,
        "Share of documents, chosen by hash, that training never sees.",
        bound=Bound("(0, 1)", "needs a number between 0 and 1", lambda share: 0 < share < 1),
        unit="share",
    )
    sequence_length: int = setting(
        1024, Role.STATIC, "L, the tokens in a window of training text.", bound=POSITIVE_WHOLE, unit="tokens"
    )
    batch_size: int = setting(128, Role.STATIC, "Sequences per step.", bound=POSITIVE_WHOLE, unit="sequences")
    max_epochs: float = setting(
        1.0,
        Role.EXECUTION,
        "A budget that passes over the training tokens more often than this is refused.",
        bound=POSITIVE,
        unit="epochs",
    )
    arithmetic: ArithmeticConfig = ArithmeticConfig()

    @property
    def is_arithmetic(self) -> bool:
        """Whether the run is trained on equations instead of text."""
        return self.corpus == "arithmetic"

    @property
    def separator(self) -> str:
        """`document_separator` with its escapes replaced."""
        return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], self.document_separator)

    @property
    def source(self) -> "DataConfig":
        """Return the settings that runs with the same prepared data share, without how each run reads them."""
        walk = reset(self, Role.STATIC, Role.TRACED, Role.EXECUTION)
        return dataclasses.replace(walk, train_domains=self.train_domains)

    def check_fields(self, at: str) -> None:
        folder_name(self.name, f"{at}.name")
        require(
            self.tokenizer in ("bpe", "olmo", "olmo2") or "/" in self.tokenizer or self.tokenizer.endswith(".json"),
            f"{at}.tokenizer",
            self.tokenizer,
            "is none of 'bpe', 'olmo' and 'olmo2', nor a path, which has to contain '/' or end in .json",
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
                f"applies only to the corpus 'text_files', and this one is {self.corpus!r}; leave it out",
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
