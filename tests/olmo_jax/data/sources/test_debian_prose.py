import collections
import gzip
import hashlib
import re
import shutil
import struct
import subprocess

import pytest

from olmo_jax.config import DataConfig
from olmo_jax.data import DataError
from olmo_jax.data.corpus import build
from olmo_jax.data.sources import debian_prose, markup, prose
from olmo_jax.data.sources.debian_prose import Package

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb isn't here")

PAGE = """<html><head><title>The title of a page with rather a lot of words</title></head><body>
<!-- The comment is for the writers of the page and for nobody else. --><p>Next: <a href="x">The page after this one and
all the others</a></p><nav><p>The navigation leads the reader to all the other pages.</p></nav>
<h1>A heading</h1><p>The <b>first</b> <a href="y">paragraph</a> of page {n} says
that   caf&eacute;s &amp; bars are open<br/>until the night.</p><pre>for (the code) { is; not; prose; }</pre>
<ul><li>The item of a list of page {n} is a paragraph as well as the others are.</li><li>Too short.</li></ul></body>"""
NUMBERS = ("one", "two", "three", "four", "five", "six")


def page(number):
    return PAGE.replace("{n}", NUMBERS[number])


def make_deb(cache, name, files):
    root = cache / f"of-{name}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1:2-3\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: test\n"
    )
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    deb = cache / f"{name}_1%3a2-3_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, deb], check=True, capture_output=True)
    shutil.rmtree(root)
    return deb


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Two domains, manual and sayings, with their packages."""
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(debian_prose, "DOMAINS", {
        "manual": (Package(("old-doc", "new-doc"), r".*\.html"),),
        "sayings": (Package(("sayings",), r".*/all\.gz", markup.plain, markup.fortunes),),
    })  # fmt: skip
    make_deb(tmp_path, "new-doc", {f"usr/share/doc/n/{n}.html": page(n) for n in range(6)} | {"usr/share/doc/x": "x"})
    sayings = [f"What {'so ' * n}many people have said to the others is true.\n" for n in range(60)]
    sayings.append("The item of a list of page one is a paragraph as well as the others are.\n")  # the manual has it
    make_deb(tmp_path, "sayings", {"usr/games/all.gz": gzip.compress("%\n".join(sayings).encode())})
    return tmp_path


@needs_dpkg
def test_documents_are_files_and_groups_of_entries(cache):
    documents = {e.id: e for e in debian_prose.examples(1.0)}
    assert len(documents) == 6 + 2
    assert documents["new-doc/usr/share/doc/n/1.html"].text == (
        "The first paragraph of page two says that cafés & bars are open until the night.\n\n"
        "The item of a list of page two is a paragraph as well as the others are."
    )
    first = documents["sayings/usr/games/all.gz/00000"]
    assert first.domain == "sayings" and len(first.text.split("\n\n")) == 50
    assert "list of page one" not in documents["sayings/usr/games/all.gz/00001"].text


@needs_dpkg
def test_the_cap_applies_per_domain_and_keeps_the_first_documents(cache):
    whole, capped = ({e.id: e for e in debian_prose.examples(cap)} for cap in (1.0, 0.0005))
    assert 0 < len(capped) < len(whole) and capped.items() <= whole.items()
    size = collections.Counter()
    for example in capped.values():
        size[example.domain] += len(example.text.encode())
    assert all(total <= 500 for total in size.values())


@needs_dpkg
def test_a_long_file_is_cut_between_paragraphs(cache, monkeypatch):
    monkeypatch.setattr(debian_prose, "_LARGEST_EXAMPLE", 100)
    ids = [e.id for e in debian_prose.examples(1.0) if "/1.html" in e.id]
    assert ids == ["new-doc/usr/share/doc/n/1.html", "new-doc/usr/share/doc/n/1.html#1"]


@needs_dpkg
def test_corpus_is_reproducible_and_its_sources_are_the_package_files(cache, tmp_path):
    corpus = build(DataConfig(corpus="debian_prose", max_megabytes=1.0), tmp_path / "corpus")
    assert len(corpus) == 8
    assert sorted(corpus) == sorted((e.domain, e.text) for e in debian_prose.examples(1.0))
    sources = debian_prose.sources(1.0)
    deb = cache / "new-doc_1%3a2-3_all.deb"
    assert sources[f"manual/{deb.name}"] == hashlib.sha256(deb.read_bytes()).hexdigest()
    assert sources["debian_prose"] == debian_prose.VERSION and sources["max_megabytes"] == "1.0"


@needs_dpkg
def test_broken_and_empty_packages_are_refused(cache, monkeypatch):
    deb = cache / "new-doc_1%3a2-3_all.deb"
    deb.write_bytes(deb.read_bytes()[:300])
    with pytest.raises(DataError, match=r"new-doc.*can't be unpacked \(dpkg-deb: error.*remove it"):
        list(debian_prose.examples(1.0))
    deb.unlink()
    make_deb(cache, "new-doc", {"usr/share/doc/x": "x"})
    with pytest.raises(DataError, match="new-doc.*contains no file matching"):
        list(debian_prose.examples(1.0))
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(DataError, match="needs dpkg-deb"):
        list(debian_prose.examples(1.0))


def test_missing_apt_get_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match="domain 'bible' of data.corpus 'debian_prose' needs apt-get, which can't be run here"
    ) as raised:
        debian_prose.sources(1.0)
    assert "\n" not in str(raised.value)


def test_pod_markup_becomes_prose():
    text = (
        "=head1 NAME\n\nSee L<the page|perlop/x>, C<< $a <=> $b >>, I<not B<this>>X<index>\nE<lt>C</(?<=a)/>\n\n  x\n"
    )
    assert markup.pod(text) == ["See the page, $a <=> $b, not this </(?<=a)/"]


def test_dictionary_files_become_entries():
    first = 'Affect \\Af*fect"\\, v. t. [imp. {Affected}; [L. ad] x]\n   1. To act upon.\n      [1913 Webster]\n\n'
    (group,) = markup.dictd_entries(first + "Affy \\A\\\n")
    assert markup.plain(group) == ["Affect, v. t. To act upon.", "Affy,"]
    line = '00401783 04 n 01 ice_cream 0 001 @ 00268557 n 0000 | a frozen dessert; "two scoops"  \n'
    assert markup.wordnet_entries(f"  1 The licence | of it\n{line}") == ['ice cream: a frozen dessert; "two scoops"']


def test_metamath_comments_become_prose():
    text = (
        "$( The class ` A ` is a _set_ by ~ elex .\n (Contributed by N M, 5-Jan-2013.)\n  $)\n elex $p |- x $= abc $.\n"
    )
    assert [markup.plain(group) for group in markup.metamath_comments(text)] == [["The class A is a set by elex."]]


def compressed(text):
    """Return fewer than 250 bytes as `compress` could encode them after its header: one nine-bit code per byte."""
    codes = sum(byte << 9 * i for i, byte in enumerate(text.encode()))
    return codes.to_bytes(-(-9 * len(text) // 8), "little")


def test_compressed_bible_text_is_unpacked_into_chapters():
    verses = "".join(f"Ge{chapter}:{n} And it was so.\n" for chapter in (1, 2) for n in range(1, 4))
    blocks = [compressed(half) for half in (verses[:50], verses[50:])]
    starts = (0x5C + 8, 0x5C + 8 + len(blocks[0]))
    packed = markup.BIBLE_MAGIC.ljust(0x58, b"\0") + struct.pack(">3I", 2, *starts) + b"".join(blocks)
    assert markup.bible_text(packed) == verses
    assert markup.bible_chapters(verses) == ["\n".join(["And it was so."] * 3)] * 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get isn't here")
def test_real_debian_packages_give_the_expected_corpus():
    """Fetches packages that aren't cached yet."""
    assert list(debian_prose.MEGABYTES) == list(debian_prose.DOMAINS)
    documents = list(debian_prose.examples(0.3))
    assert len({e.id for e in documents}) == len(documents)
    size, paragraphs, marked = collections.Counter(), collections.Counter(), collections.Counter()
    for example in documents:
        size[example.domain] += len(example.text.encode())
        for paragraph in example.text.split("\n\n"):
            assert prose.as_prose(paragraph, debian_prose.MIN_WORDS) == paragraph
            paragraphs[example.domain] += 1
            marked[example.domain] += bool(re.search(r"</\w|\b[BCFIL]<|&[a-z]+;", paragraph))
    assert size.keys() == debian_prose.DOMAINS.keys()
    assert all(0.15e6 < total <= 0.3e6 for total in size.values()), size
    # Manuals of markup languages contain markup.
    assert all(marked[domain] < 0.01 * paragraphs[domain] for domain in paragraphs), (marked, paragraphs)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get isn't here")
def test_a_package_is_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(debian_prose, "DOMAINS", {"bible": debian_prose.DOMAINS["bible"]})
    first = debian_prose.sources(1.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian_prose.sources(1.0) == first and len(first) == 3
