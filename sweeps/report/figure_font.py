"""A small copy of matplotlib's font for the figures' PDF files.

Each PDF holds the glyphs that it uses, and to take them out of a font all of that font is read: DejaVu Sans has 6,000
glyphs with their layout tables, which took a third of the time of all figures. The copy has the glyphs of Latin, Greek,
Cyrillic, punctuation and mathematics; what it lacks comes from the whole font.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib is heavy, and the command line imports this package at each command
    from matplotlib.figure import Figure

_FAMILY, _SMALL_FAMILY = "DejaVu Sans", "DejaVu Sans of figures"
_BLOCKS = ((0x20, 0x17F), (0x370, 0x4FF), (0x2000, 0x20CF), (0x2190, 0x22FF))
_NAMES_OF_FAMILY = (1, 16)  # in the font's table of names


@contextlib.contextmanager
def small_font() -> Iterator[None]:
    """Register the small copy with matplotlib within the block, so that `in_small_font` has an effect."""
    from matplotlib.font_manager import fontManager

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.ttf"
        _write_copy(fontManager.findfont(_FAMILY), path)
        fontManager.addfont(path)
        added = fontManager.ttflist[-1]
        try:
            yield
        finally:
            fontManager.ttflist.remove(added)


def in_small_font(figure: "Figure") -> None:
    """Set the figure's text in the small copy, and characters that it lacks in the former font."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    if any(font.name == _SMALL_FAMILY for font in fontManager.ttflist):
        for text in figure.findobj(Text):
            text.set_fontfamily([_SMALL_FAMILY, *text.get_fontfamily()])


def _write_copy(source: str, path: Path) -> None:
    from fontTools import subset

    options = subset.Options(glyph_names=True, name_IDs=["*"])
    options.drop_tables += ["FFTM"]  # FontForge's time stamp, which fontTools can't subset
    with subset.load_font(source, options) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=[code for first, last in _BLOCKS for code in range(first, last + 1)])
        subsetter.subset(font)
        for name in font["name"].names:
            if name.nameID in _NAMES_OF_FAMILY:
                font["name"].setName(_SMALL_FAMILY, name.nameID, name.platformID, name.platEncID, name.langID)
        font.save(path)
