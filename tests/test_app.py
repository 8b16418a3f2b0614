import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from gradio_client import Client, handle_file

from app import main
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_app_prints_one_line_with_its_address_and_answers_there(finished_run, film_folder):
    film = str(next((film_folder / "test" / "PNEUMONIA").iterdir()))
    command = [sys.executable, ROOT / "app.py", "--model", finished_run]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as app:
        try:
            (address,) = re.fullmatch("The page is at (http://127.0.0.1:.*/)\n", app.stdout.readline()).groups()
            answer = Client(address, verbose=False).predict(handle_file(film), api_name="/predict")
            expected = PneumoniaClassifier.from_pretrained(finished_run)(film)
            assert answer["decision"] == expected.decision
            assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
        finally:
            app.terminate()  # not SIGINT, which a process that was started in the background ignores
            rest = app.stdout.read()
        assert not rest


def test_no_such_model_is_a_mistake_that_the_user_can_mend():
    with pytest.raises(UsageError, match="/no/such/run"):
        main(["--model", "/no/such/run"])
