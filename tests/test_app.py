import os
import socket
import subprocess
import sys
import urllib.request

import pytest
from conftest import ROOT
from gradio_client import Client, handle_file

from app import main
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_app_prints_one_line_with_its_address_and_answers_there(finished_run, film_folder):
    film = str(next((film_folder / "test" / "PNEUMONIA").iterdir()))
    port = _free_port()
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, ROOT / "app.py", "--model", finished_run]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as app:
        try:
            assert app.stdout.readline() == f"The page is at {address}\n"
            page = urllib.request.urlopen(address, timeout=20).read().decode()
            assert "Pneumonia on chest films" in page and "Not a medical device" in page
            answer = Client(address, verbose=False).predict(handle_file(film), api_name="/predict")
            expected = PneumoniaClassifier.from_pretrained(finished_run)(film)
            assert answer["decision"] == expected.decision
            assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
        finally:
            app.terminate()  # not SIGINT, which a process that was started in the background ignores
            rest = app.stdout.read()
        assert not rest


def test_a_port_that_is_taken_is_a_mistake_that_the_user_can_mend(finished_run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # As GRADIO_SERVER_PORT and GRADIO_NUM_PORTS say it to Gradio when it is imported.
        monkeypatch.setattr("gradio.http_server.INITIAL_PORT_VALUE", taken.getsockname()[1])
        monkeypatch.setattr("gradio.http_server.TRY_NUM_PORTS", 1)
        with pytest.raises(UsageError, match="expected a free port for the page"):
            main(["--model", str(finished_run)])


def test_no_such_model_is_a_mistake_that_the_user_can_mend():
    with pytest.raises(UsageError, match="/no/such/run"):
        main(["--model", "/no/such/run"])
