import textwrap

import pytest

from olmo_jax.data.sources import prose

SOURCE = '''
# Copyright 2024 Somebody and others.
#
# Permission is granted to use this in any way that you like.

# The cache is kept small because every entry
# holds a whole file in memory.
def load(path, limit):
    """Reads a file into memory and returns its lines.

    The result is cached, so reading twice is cheap; see :func:`drop` for
    how to empty the cache and ``limit`` for its size.

    Parameters
    ----------
    path : str or os.PathLike, absolute or relative to the folder
        Where the file lies; a missing one is created.
    limit: int
        How many files to keep at most before the oldest goes.

    Returns:
      lines: The lines of the file without their ends.

    Examples
    --------
    >>> load("a.txt", 3)
    ['this is the output that nobody should read']

    A literal block follows here, as an example::

        the words in this block are not to be read as prose

    .. math::

        the sum of all the terms in the series

    .. note:: Files larger than the memory are not supported here.

    ======  =========================
    name    what the name stands for
    ======  =========================
    one     the first of all the numbers
    ======  =========================

    +-----------------------+
    | the cell of the table |
    +-----------------------+
    """
    text = "# the string of a comment that is none at all"
    # if the_limit(path) and not is_cached(path):
    #     return the_cache[path]
    # x = the sum of all the others
    # noqa: this is for the tools and not for people
    other = """
    # the line within a string is not a comment either
    """
    return text  # trailing remarks are left out of the prose
'''


@pytest.fixture(scope="module")
def extracted():
    return prose.paragraphs(SOURCE)


@pytest.mark.parametrize(
    "paragraph",
    [
        "Reads a file into memory and returns its lines.",
        "The result is cached, so reading twice is cheap; see drop for how to empty the cache and limit for its size.",
        "Where the file lies; a missing one is created.",
        "How many files to keep at most before the oldest goes.",
        "The lines of the file without their ends.",
        "A literal block follows here, as an example:",
        "Files larger than the memory are not supported here.",
        "The cache is kept small because every entry holds a whole file in memory.",
    ],
)
def test_prose_is_kept(extracted, paragraph):
    assert paragraph in extracted


def test_non_prose_is_dropped(extracted):
    assert len(extracted) == 8, extracted


def test_fresh_drops_paragraphs_equal_up_to_case_digits_and_space():
    earlier = set()
    assert prose.fresh(["Takes 3 arguments at most.", "takes 12  arguments at most.", "Takes none."], earlier) == [
        "Takes 3 arguments at most.",
        "Takes none.",
    ]
    assert prose.fresh(["TAKES NONE."], earlier) == []


def test_definitions_within_statements_are_found():
    source = """
    try:
        import fast
    except ImportError:
        class Slow:
            def run(self):
                'Runs the whole thing in the slow way.'
    """
    assert prose.paragraphs(textwrap.dedent(source)) == ["Runs the whole thing in the slow way."]


def test_unparsable_files_give_no_prose(tmp_path):
    contents = [b"'The first of all the files.'", b"'\xff'", b"def (", b"\0", b"'The last of all the files.'"]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.py").write_bytes(content)
    extracted = prose.paragraphs_of_files([*(tmp_path / f"{i}.py" for i in range(5)), tmp_path / "missing.py"])
    assert extracted == [["The first of all the files."], [], [], [], ["The last of all the files."], []]
