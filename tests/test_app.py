import io
import os
import re
import signal
import sys
import threading
import time

import pytest
from gradio_client import Client, handle_file

from app import main
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_app_prints_one_line_with_its_address_and_answers_there(finished_run, film_folder, monkeypatch):
    film = str(next((film_folder / "test" / "PNEUMONIA").iterdir()))
    said, ended, answers = io.StringIO(), threading.Event(), []
    monkeypatch.setattr(sys, "stdout", said)
    before = signal.getsignal(signal.SIGTERM)

    def ask():
        while not said.getvalue().endswith("\n") and not ended.is_set():
            time.sleep(0.1)
        try:
            (address,) = re.fullmatch("The page is at (http://.*/)\n", said.getvalue()).groups()
            answers.append(Client(address, verbose=False).predict(handle_file(film), api_name="/predict"))
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(SystemExit):
            main(["--model", str(finished_run)])
    finally:
        ended.set()
        asking.join()
        signal.signal(signal.SIGTERM, before)
    (answer,) = answers
    expected = PneumoniaClassifier.from_pretrained(finished_run)(film)
    assert answer["decision"] == expected.decision
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)


def test_no_such_model_is_a_mistake_that_the_user_can_mend():
    with pytest.raises(UsageError, match="/no/such/run"):
        main(["--model", "/no/such/run"])
