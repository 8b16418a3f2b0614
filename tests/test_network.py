import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_decoder import _runs, _until

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.network import CHANGED, DIED, NOT_AGAIN, NetworkProcess, _Process
from hf_pneumonia.page.remote_classifier import RemoteClassifier


@pytest.fixture(scope="module")
def here(finished_run) -> PneumoniaClassifier:
    return PneumoniaClassifier.from_pretrained(finished_run)


@pytest.fixture(scope="module")
def network(finished_run):
    with NetworkProcess(str(finished_run)) as network:
        yield network


@pytest.fixture(scope="module")
def there(network) -> RemoteClassifier:
    return RemoteClassifier(network)


@pytest.fixture(scope="module")
def films(film_folder) -> list[Path]:
    return sorted((film_folder / "test").rglob("*.jpeg"))


def _pid(network: NetworkProcess) -> int:
    return network._process._process.pid


def _kill(network: NetworkProcess) -> None:
    os.kill(_pid(network), signal.SIGKILL)
    assert _until(lambda: not network._process.running)


def _same(ours, theirs) -> None:
    assert ours == theirs  # heat maps are no part of that
    if ours.heat_map is None:
        assert theirs.heat_map is None
    else:
        assert theirs.heat_map.dtype == ours.heat_map.dtype and theirs.heat_map.flags.writeable
        np.testing.assert_array_equal(ours.heat_map, theirs.heat_map)


def test_it_has_of_the_model_what_the_class_has(here, there):
    for name in ("name", "image_size", "threshold", "operating_point", "band", "trade_off", "notes"):
        assert getattr(there, name) == getattr(here, name)
    assert isinstance(there.band, tuple) and there.makes_heat_maps() is True
    for probability in (0.0, 0.2, here.threshold, 1.0):
        assert there.decide(probability) == here.decide(probability)
        assert there.decide(probability, 0.3) == here.decide(probability, 0.3)
    with pytest.raises(AttributeError):
        there.model  # noqa: B018


@pytest.mark.parametrize("heat_map", [False, True])
def test_a_film_gets_the_answer_of_the_class_to_the_last_bit(here, there, films, heat_map):
    large = Image.open(films[5]).resize((900, 700))  # which torch resizes
    for film in (films[0], films[-1], Image.new("L", (50, 60)), np.asarray(Image.open(films[3])), large):
        _same(here(film, heat_map=heat_map), there(film, heat_map=heat_map))


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_many_films_get_the_answers_of_the_class_in_their_order(here, there, films, batch_size):
    expected = here((Image.open(film) for film in films), batch_size=batch_size)
    found = there((Image.open(film) for film in films), batch_size=batch_size)
    assert expected == found and len({one.probability for one in found}) > 5


def test_threads_that_ask_at_a_time_get_each_his_own_answer(here, there, films):
    expected = [here(film) for film in films]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there, films)) == expected


def test_a_mistake_and_a_bug_are_raised_where_it_was_asked(network, there, vit_folder):
    square = np.zeros((1, there.image_size, there.image_size), np.uint8)
    with pytest.raises(RuntimeError, match="(?s)ValueError in the network's process.*predict_squares"):
        there.predict_squares(square, problems=["one", "too many"])
    assert len(there.predict_squares(square)) == 1
    with NetworkProcess(str(vit_folder)) as another:
        classifier = RemoteClassifier(another)
        square = np.zeros((1, classifier.image_size, classifier.image_size), np.uint8)
        with pytest.raises(UsageError, match="heat maps are made of timm's networks"):
            classifier.predict_squares(square, heat_map=True)
        ours = PneumoniaClassifier.from_pretrained(vit_folder)
        assert classifier.predict_squares(square) == ours.predict_squares(square)
        assert classifier.notes == ours.notes


def test_a_model_that_can_not_be_loaded_is_the_same_mistake_as_in_the_class(tmp_path):
    for name in ("/no/such/run", str(tmp_path)):
        with pytest.raises(UsageError) as expected:
            PneumoniaClassifier.from_pretrained(name)
        with NetworkProcess(name) as network:
            for _ in range(2):
                with pytest.raises(UsageError) as found:
                    network.facts()
                assert str(found.value) == str(expected.value)


def test_one_that_is_killed_while_it_answers_is_started_again_and_asked_again(here, there, network, films):
    before = _pid(network)
    os.kill(before, signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(there, film) for film in films[:6]]
        time.sleep(0.3)
        os.kill(before, signal.SIGKILL)
        assert [one.result() for one in asked] == [here(film) for film in films[:6]]
    assert _pid(network) != before and not _runs(before)


def test_a_question_that_ends_it_twice_is_given_up(here, there, network, films, monkeypatch):
    def end(process, *_):
        process._process.kill()
        raise EOFError

    with monkeypatch.context() as patch:
        patch.setattr(_Process, "ask", end)
        with pytest.raises(UsageError, match=DIED):
            there(films[0])
    assert there(films[0]) == here(films[0])


def test_a_message_that_it_can_not_read_ends_it_and_leaves_nobody_waiting(here, there, network, films):
    before = _pid(network)
    for pipe in network._process._pipes:
        pipe.send_bytes(b"no JSON")
    assert _until(lambda: not _runs(before))
    assert there(films[0]) == here(films[0])


def test_one_that_is_killed_while_it_loads_is_a_mistake_of_one_line(timm_folder):
    with NetworkProcess(str(timm_folder)) as network:
        os.kill(_pid(network), signal.SIGKILL)
        with pytest.raises(UsageError, match="ended by signal 9; it may need more memory"):
            network.facts()


def test_one_that_died_while_nobody_asked_costs_no_answer(here, there, network, films):
    there(films[0])
    _kill(network)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(there, films[:6])) == [here(film) for film in films[:6]]


def test_of_a_model_that_changed_meanwhile_nothing_is_answered(timm_folder, films):
    with NetworkProcess(str(timm_folder)) as network:
        classifier = RemoteClassifier(network)
        classifier(films[0])
        os.utime(timm_folder / "model.safetensors", (0, 0))
        _kill(network)
        for _ in range(2):
            with pytest.raises(UsageError, match=CHANGED):
                classifier(films[0])
        assert network._process.running


def test_one_that_can_not_be_started_again_is_said_without_a_way_on_this_machine(timm_folder, films, caplog):
    with NetworkProcess(str(timm_folder)) as network:
        classifier = RemoteClassifier(network)
        classifier(films[0])
        (timm_folder / "config.json").rename(timm_folder / "aside")
        _kill(network)
        for _ in range(2):
            with pytest.raises(UsageError) as found:
                classifier(films[0])
            assert str(found.value) == NOT_AGAIN
        assert "config.json is missing" in caplog.text
        (timm_folder / "aside").rename(timm_folder / "config.json")
        classifier(films[0])


def test_closing_ends_the_process_and_those_who_wait(timm_folder, films):
    network = NetworkProcess(str(timm_folder))
    classifier = RemoteClassifier(network)
    classifier(films[0])
    pid = _pid(network)
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(classifier, films[0]) for _ in range(2)]
        time.sleep(0.2)
        network.close()
        assert all(type(one.exception()) is RuntimeError for one in asked)
    assert not _runs(pid)
    network.close()


SERVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from hf_pneumonia.page.network import NetworkProcess
network = NetworkProcess(sys.argv[1])
if sys.argv[2] == "loaded":
    network.facts()
print(network._process._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("when", ["loading", "loaded"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_none_is_left_behind_by_a_server_that_ends_in_whatever_way(timm_folder, when, how):
    command = [sys.executable, "-c", SERVER, timm_folder, when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as server:
        pid = int(server.stdout.readline())
        assert _runs(pid)
        server.send_signal(how)
    assert _until(lambda: not _runs(pid))


def test_it_gets_no_secret_but_what_fetches_a_model(timm_folder, monkeypatch):
    secret = ("MY_SECRET_1", "AWS_SECRET_ACCESS_KEY", "api_key", "GITHUB_TOKEN")
    for name in (*secret, "HF_TOKEN"):
        monkeypatch.setenv(name, "of-nobody-else")
    with NetworkProcess(str(timm_folder)) as network:
        network.facts()
        environment = Path(f"/proc/{_pid(network)}/environ").read_text().split("\0")
    names = {line.split("=")[0] for line in environment}
    assert "HF_TOKEN" in names and not names & set(secret)


def _imported(code: str, *argv: object) -> set[str]:
    """What is imported in the end by a program of its own."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_what_starts_it_imports_nothing_that_takes_time():
    assert not {"numpy", "PIL", "torch", "gradio"} & _imported("import hf_pneumonia.page.network")


def test_a_page_that_answers_imports_no_torch(timm_folder):
    code = (
        "import sys, gradio\n"
        "from PIL import Image\n"
        "from hf_pneumonia.page.network import NetworkProcess\n"
        "from hf_pneumonia.page.page import build_page\n"
        "from hf_pneumonia.page.remote_classifier import RemoteClassifier\n"
        "with NetworkProcess(sys.argv[1]) as network:\n"
        "    classifier = RemoteClassifier(network)\n"
        "    build_page(classifier, model=sys.argv[1])\n"
        "    films = [Image.new('L', (900, 900)), Image.new('L', (40, 50))]\n"
        "    classifier(films[0], heat_map=True), classifier(films)\n"
    )
    assert not {"torch", "transformers"} & _imported(code, timm_folder)


def test_the_process_imports_no_transformers(timm_folder):
    code = (
        "import sys, numpy as np\n"
        "from hf_pneumonia.page.network_process import _load, _answer\n"
        "classifier, _ = _load(sys.argv[1])\n"
        "question = {'ask': 'predict', 'heat_map': True, 'problems': None, 'one_core': True}\n"
        "_answer(classifier, question, bytes(classifier.image_size ** 2))\n"
    )
    assert not {"transformers", "datasets", "gradio"} & _imported(code, timm_folder)
