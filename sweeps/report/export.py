"""The figures and tables of a report as files for papers: SVG, PDF and PNG; CSV with every digit, and LaTeX.

The .tex needs the package booktabs and nothing else; its numbers are rounded to what their intervals support.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jinja2
from etils import epath

from olmo_jax import files
from sweeps.report import cells, render
from sweeps.report.item import Figure, Shown, Table, items
from sweeps.table.columns import AnalysisError

if TYPE_CHECKING:
    from sweeps.report.item import Item

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after \\ it would begin an argument
        "]": "{]}",
        "*": "{*}",  # likewise
        "\N{MINUS SIGN}": "$-$",
        "\N{GREEK SMALL LETTER RHO}": r"$\rho$",
        "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
        "\N{SUPERSCRIPT TWO}": "$^2$",
    }
    | {character: f"\\{character}" for character in "_%&#${}"}
)


class DrawingError(AnalysisError):
    """Charts that can't be drawn; the message names them and says why."""


def figure_item(name: str) -> "Item":
    """Return the figure of this name. Raises AnalysisError, with the nearest name and the list, for an unknown one."""
    known = {item.name: item for item in items(Figure)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise AnalysisError(f"no figure '{name}'; the nearest is '{near}', and the figures are: {', '.join(known)}")
    return known[name]


def write_figures(folder: epath.PathLike, shown: Sequence[Shown]) -> list[epath.Path]:
    """Write NAME.svg, .pdf and .png of each figure that has something to show.

    Other files of these figures, from an earlier report, are removed. Returns the paths, in the order of `shown`. Each
    file is written atomically; the same results give the same bytes.
    """
    figures = _contents(shown)
    drawn = ((name, {} if figure is None else render.files(figure)) for name, figure in figures.items())
    return _write(folder, drawn, render.FORMATS)


@contextlib.contextmanager
def write_figures_beside(folder: epath.PathLike, shown: Sequence[Shown], formats: Sequence[str]) -> Iterator[None]:
    """Write figures as `write_figures` does, in these formats; another process draws them while the block runs.

    Raises DrawingError, after the others are written, for figures that can't be drawn.
    """
    figures = _contents(shown)
    with render.start([figure for figure in figures.values() if figure is not None], formats) as process:
        try:
            yield
            drawn = iter(render.finish(process))
        except BaseException:
            process.kill()
            raise
    results = {name: {} if figure is None else next(drawn) for name, figure in figures.items()}
    failed = [f"{name}: {result}" for name, result in results.items() if isinstance(result, str)]
    written = ((name, {} if isinstance(result, str) else result) for name, result in results.items())
    _write(folder, written, render.FORMATS)
    if failed:
        raise DrawingError(f"some figures can't be drawn; fix their charts: {'; '.join(failed)}")


def _contents(shown: Sequence[Shown]) -> dict[str, Figure | None]:
    """Return the figures by name, None for those with nothing to show."""
    return {
        one.item.name: one.content if isinstance(one.content, Figure) else None
        for one in shown
        if one.item.kind is Figure
    }


def write_tables(folder: epath.PathLike, shown: Sequence[Shown]) -> list[epath.Path]:
    """Write NAME.csv and NAME.tex of each table that is meant for papers, as `write_figures` does."""
    tables = {one.item.name: one.content for one in shown if one.item.kind is Table}
    texts = ((name, _texts(of) if isinstance(of, Table) and of.for_papers else {}) for name, of in tables.items())
    return _write(folder, texts, ("csv", "tex"))


def _texts(table: Table) -> dict[str, str]:
    return {"csv": table.frame.to_csv(index=False), "tex": tabular(table)}


def _write(
    folder: epath.PathLike, contents: Iterable[tuple[str, Mapping[str, str | bytes]]], endings: Sequence[str]
) -> list[epath.Path]:
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in contents:
        for ending in endings:
            path = folder / f"{name}.{ending}"
            if ending in content:
                paths.append(files.write_whole(path, content[ending], durable=False))
            else:
                path.unlink(missing_ok=True)  # from an earlier report
    return paths


def tabular(table: Table) -> str:
    """Return a LaTeX tabular in the style of booktabs, with a comment above that says what it is.

    A column of notes that are all empty is left out.
    """
    columns = [i for i, head in enumerate(table.heads) if head != "note" or any(row[i].text for row in table.rows)]
    return _environment().get_template("table.tex").render(table=table, columns=columns)


def escape_latex(text: object) -> str:
    """Escape a text for LaTeX; characters that can't be printed become spaces."""
    return "".join(c if c.isprintable() else " " for c in str(text)).translate(_ESCAPES)


def _environment() -> jinja2.Environment:
    """Return an environment with delimiters that LaTeX doesn't use, which escapes all that a template prints."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sweeps.report"),
        finalize=escape_latex,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["rounded"] = cells.rounded
    return environment
