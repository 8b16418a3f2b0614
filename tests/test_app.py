import re
import subprocess
import sys

import pytest
from conftest import ROOT
from gradio_client import Client, handle_file

from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_app_prints_one_line_with_its_address_and_answers_there(finished_run, image_folder):
    image = str(next((image_folder / "test" / "PNEUMONIA").iterdir()))
    command = [sys.executable, ROOT / "app.py", "--model", finished_run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        try:
            (address,) = re.fullmatch("The page is at (http://.*/)\n", app.stdout.readline()).groups()
            answer = Client(address, verbose=False).predict(handle_file(image), api_name="/predict")
        finally:
            app.terminate()
        assert app.stdout.read() == "" and app.wait(20) == 0
    expected = PneumoniaClassifier.from_pretrained(finished_run)(image)
    assert answer["decision"] == expected.decision
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
