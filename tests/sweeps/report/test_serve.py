"""The live page: what it answers, to whom, and what it keeps to itself."""

import http.client
import json
import threading

import pytest
from etils import epath

from olmo_jax.config import ConfigError
from olmo_jax.errors import UserError
from sweeps import cli
from sweeps.planning.record import recorded_plan
from sweeps.report.serve import server

CONFIG = """
from ml_collections import ConfigDict
from olmo_jax.config import TrainConfig, to_config_dict
from sweeps.planning.grid import product

def get_config():
    train = to_config_dict(TrainConfig(name="live", tokens=8 * 64))
    train.model.update(dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32))
    train.data.update(dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                           train_domains=("prose",), sequence_length=16, batch_size=4, max_epochs=99.0))
    train.probe.update(dict(every=4, documents=10, document_tokens=12))
    return ConfigDict(dict(train=train, grid=product({{"optimizer.weight_decay": [0.1, 5.0]}})))
"""


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    (folder / "sweep.py").write_text(CONFIG.format(corpus=str(corpus)))
    assert cli.main(["train", f"--config={folder / 'sweep.py'}", f"--workdir={folder / 'work'}"]) == 0
    (folder / "work" / "report").mkdir()
    (folder / "work" / "report" / "index.html").write_text("the report")
    (folder / "work" / "report" / "outside").symlink_to(folder / "sweep.py")
    return epath.Path(folder / "work")


@pytest.fixture(scope="module")
def port(workdir):
    with server(workdir, recorded_plan(workdir), 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening.server_address[1]
        listening.shutdown()
        thread.join()


def get(port, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_the_numbers_are_those_of_the_working_directory(port, workdir):
    status, content = get(port, "/live.json?metric=unembedding/effective_rank_percent")
    assert status == 200
    live = json.loads(content)
    assert [run["state"] for run in live["runs"]] == ["done", "done"]
    assert [run["step"] for run in live["runs"]] == [8, 8]
    assert {tuple(values.items()) for values in live["settings"].values()} == {
        (("optimizer.weight_decay", 0.1),),
        (("optimizer.weight_decay", 5.0),),
    }
    losses = [point for point in live["curves"] if point["metric"] == "loss"]
    ranks = [point for point in live["curves"] if point["metric"] != "loss"]
    assert len(losses) == 16 and {point["step"] for point in ranks} == {0, 4, 8}
    assert "unembedding/mean_cosine" in live["metrics"]
    assert any("evaluations of checkpoints are left" in line for line in live["lines"])
    assert live["has_report"] and not live["finished"]
    row = json.loads((workdir / "runs" / live["runs"][0]["run_id"] / "metrics.jsonl").read_text().splitlines()[-1])
    assert live["runs"][0]["loss"] == row["loss"]


def test_the_page_and_the_report_are_answered_and_nothing_else(port):
    status, page = get(port, "/")
    assert status == 200 and "vegaEmbed" in page and "<title>" in page
    assert get(port, "/report/index.html") == (200, "the report")
    assert get(port, "/", host=f"localhost:{port}")[0] == get(port, "/", host="127.0.0.1")[0] == 200
    for path in ("/sweep.json", "/report/../sweep.json", "/report/%2e%2e/sweep.json", "/report/outside", "/runs/"):
        assert get(port, path)[0] == 404, path
    assert get(port, "/live.json", host="example.org:80")[0] == 403


def test_a_port_in_use_or_out_of_range_is_one_line(port, workdir, capsys):
    with pytest.raises(UserError, match=rf"--port={port}: Address already in use; choose another port, or 0"):
        server(workdir, recorded_plan(workdir), port)
    with pytest.raises(ConfigError, match="needs a number from 0 to 65535"):
        server(workdir, recorded_plan(workdir), 70000)
    assert cli.main(["serve", f"--workdir={workdir}", f"--port={port}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
