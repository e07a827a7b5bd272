"""Items of the report: each figure, table or paragraph is one function of the results that declares where it stands.

    @report_item(section="scatter", order=20)
    def rank_by_loss(results: AnalysisResults) -> Figure:
        "Each run's rank against its loss."
        if results.final.rows.empty:
            raise NothingToShow("no run has finished")
        return Figure(alt.Chart(alt.NamedData("final")).mark_point().encode(...), data={"final": ...})

The page, the files in report/figures and report/tables, the names of `--figure` and the list in docs/reading.md follow
from the registry. Your own items can be in any file that is imported before the report is written, such as the one that
`--config` names.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pandas as pd

from olmo_jax.columns import first_sentence
from olmo_jax.errors import brief
from sweeps.table.columns import AnalysisError

if TYPE_CHECKING:  # altair takes half a second to import, and every command imports this package
    import altair

    from sweeps.analysis.results import AnalysisResults


class NothingToShow(AnalysisError):  # noqa: N818 (nothing has gone wrong)
    """Raised by an item that has nothing to show for this sweep; the message says briefly what is missing."""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: what it shows. value: a number with all its digits, by which the page sorts; None for text.
      kind: "" or "name", "notes", "estimate": how it looks. low, high: of an estimate's interval.
      tested: "p" or "q" and its value. details: further lines of text. digits: decimals of the interval.
    """

    text: str
    value: float | None = None
    kind: str = ""
    low: float | None = None
    high: float | None = None
    tested: tuple[str, float] | None = None
    details: Sequence[str] = ()
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
      chart: its Vega-Lite specification, whose data are named.
      data: the named data. Figures of a page share data of the same name, which have to be equal.
      note: how to read it.
    """

    chart: "altair.TopLevelMixin"
    data: Mapping[str, pd.DataFrame]
    note: str = ""

    @functools.cached_property
    def specification(self) -> dict[str, Any]:
        """The chart as Vega-Lite, without its data and its style; titles that begin with "=" are expressions."""
        spec = self.chart.to_dict()
        kept = {key: value for key, value in spec.items() if key not in ("config", "datasets", "$schema")}
        return _with_expressions(kept)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      label: what it is, in a few words. heads, rows: as the page and LaTeX show it.
      frame: as it is stored in the CSV file, with all digits.
      groups: for each row, the name of its part; on the page, each part is a table of its own.
      text_columns: number of columns, from the left, that are set flush left in LaTeX.
      runs: for each row, the run that it is about, for the page's filters.
      classes: for each row, a class of the page's style sheet, or "".
      note: how to read it. folded: whether the page shows it only when asked to.
      for_papers: whether it is written to report/tables too.
    """

    label: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    frame: pd.DataFrame
    groups: Sequence[str] = ()
    text_columns: int = 1
    runs: Sequence[str] = ()
    classes: Sequence[str] = ()
    note: str = ""
    folded: bool = False
    for_papers: bool = True

    def parts(self) -> list[tuple[str, list[int]]]:
        """Return the name and the row indices of each part, in the order of their first rows."""
        places: dict[str, list[int]] = {}
        for place in range(len(self.rows)):
            places.setdefault(self.groups[place] if self.groups else "", []).append(place)
        return list(places.items())


class Paragraph(NamedTuple):
    """A paragraph: its text, the heading before it or "", and the section whose figures show what it says or ""."""

    text: str
    heading: str = ""
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Words:
    """Paragraphs."""

    paragraphs: Sequence["Paragraph"]


Content = Figure | Table | Words
Make = TypeVar("Make", bound="Callable[[AnalysisResults], Content]")


class Section(NamedTuple):
    """A section of the page: its heading, the section that it follows or "", and whether it may be left out."""

    heading: str
    after: str = ""
    optional: bool = False


class Item(NamedTuple):
    """A registered item: where it stands, whether it is a Figure, a Table or Words, and the function that makes it."""

    name: str
    section: str
    order: float
    kind: type[Content]
    make: "Callable[[AnalysisResults], Content]"

    @property
    def meaning(self) -> str:
        """The first sentence of its docstring."""
        return first_sentence(inspect.getdoc(self.make) or "")

    @property
    def file(self) -> str:
        return inspect.getfile(inspect.unwrap(self.make))

    @property
    def is_own(self) -> bool:
        """Whether it comes from a user's file rather than from the library."""
        return not self.make.__module__.startswith("sweeps.")


class Shown(NamedTuple):
    """What an item shows for a sweep, or why it shows nothing; `error` is set if its function failed."""

    item: Item
    content: Content | None
    why: str = ""
    error: str = ""


_SECTIONS: dict[str, Section] = {}
_ITEMS: dict[str, Item] = {}


def add_section(name: str, heading: str, after: str = "", optional: bool = False) -> None:
    """Declare a section of the page; an optional one is left out where none of its items has anything to show.

    Raises ValueError for a section that is already declared differently, or that follows one that isn't declared.
    """
    if after and after not in _SECTIONS:
        raise ValueError(f"section {name!r} follows {after!r}, which isn't a section; sections: {_listed(_SECTIONS)}")
    if _SECTIONS.setdefault(name, section := Section(heading, after, optional)) != section:
        raise ValueError(
            f"section {name!r} is already declared, with the heading {_SECTIONS[name].heading!r}; rename it"
        )


def report_item(*, section: str, order: float) -> Callable[[Make], Make]:
    """Register a function of AnalysisResults as an item of the report, under its name, and return it unchanged.

    Its return annotation says what it makes: Figure, Table or Words. It raises NothingToShow where it has nothing to
    show. The first sentence of its docstring says what the item is.

    Args:
      section: the section that it is in; `add_section` declares further ones.
      order: its place among the items of the section, from the lowest; those of the library are multiples of 10.

    Raises ValueError for an unknown section, another item of that name, or a function without such an annotation. The
    same function defined again, as by a configuration file that is read twice, replaces the earlier one.
    """

    def register(make: Make) -> Make:
        kind = inspect.signature(make).return_annotation
        item = Item(make.__name__, section, order, kind, make)
        if item.is_own:
            _load()  # so that it can't take the name of one of the library's items
        else:
            importlib.import_module("sweeps.report.items.sections")
        if kind not in (Figure, Table, Words):
            raise ValueError(f"report item {make.__name__!r} needs the return annotation Figure, Table or Words")
        if section not in _SECTIONS:
            raise ValueError(f"report item {make.__name__!r}: no section {section!r}; sections: {_listed(_SECTIONS)}")
        other = _ITEMS.get(item.name)
        if other is not None and (other.file, other.make.__qualname__) != (item.file, make.__qualname__):
            raise ValueError(f"report item {item.name!r} of {item.file} is already defined in {other.file}; rename it")
        _ITEMS[item.name] = item
        return make

    return register


def sections() -> dict[str, Section]:
    """Return the sections by name, in the page's order."""
    _load()

    def following(after: str) -> Iterator[str]:
        for name in (name for name, section in _SECTIONS.items() if section.after == after):
            yield name
            yield from following(name)

    return {name: _SECTIONS[name] for name in following("")}


def items(kind: type[Content] | None = None) -> list[Item]:
    """Return the items, or those of a kind, in the page's order."""
    places = {name: i for i, name in enumerate(sections())}
    chosen = [item for item in _ITEMS.values() if kind in (None, item.kind)]
    return sorted(chosen, key=lambda item: (places[item.section], item.order, item.name))


def show(item: Item, results: "AnalysisResults") -> Shown:
    """Return what an item shows. The error of a user's own item is returned, so that the others are still shown."""
    try:
        content = item.make(results)
        if not isinstance(content, item.kind):
            raise TypeError(f"returned {type(content).__name__}, not {item.kind.__name__} as its annotation says")
        if isinstance(content, Figure):
            _ = content.specification  # checks the chart
        return Shown(item, content)
    except NothingToShow as nothing:
        return Shown(item, None, str(nothing))
    except Exception as error:
        if not item.is_own:
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == item.file]
        place = f" ({Path(item.file).name}, line {frames[-1].lineno})" if frames else ""
        return Shown(item, None, error=f"{type(error).__name__}: {brief(error)}{place}")


def own_files() -> dict[str, str]:
    """Return a hash of each user's file that defines items, by file name; the report depends on these files."""
    files = {item.file for item in items() if item.is_own}
    return {Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(files)}


@functools.cache
def _load() -> None:
    """Import the modules that declare the library's sections and items, and those of the studies."""
    importlib.import_module("sweeps.report.items.sections")
    package = importlib.import_module("sweeps.report.items")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")
    importlib.import_module("sweeps.studies").load_items()


def _with_expressions(spec: Any) -> Any:
    """Turn titles that begin with "=" into expressions, which Vega-Lite compiles although its schema only has text."""
    if isinstance(spec, list):
        return [_with_expressions(part) for part in spec]
    if not isinstance(spec, Mapping):
        return spec
    return {
        key: {"signal": value[1:]}
        if key == "title" and isinstance(value, str) and value.startswith("=")
        else _with_expressions(value)
        for key, value in spec.items()
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
