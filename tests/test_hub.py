from types import SimpleNamespace

import pytest

from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.hub import PUBLISHED, publish_run


class Recorder:
    """Stands for HfApi and remembers what it was asked; the Hub itself can't be reached by the tests."""

    def __init__(self):
        self.commits = []

    def create_repo(self, repo, private, exist_ok):
        self.created = (repo, private)

    def repo_info(self, repo):
        return SimpleNamespace(sha="abc")

    def create_commit(self, repo, operations, commit_message, parent_commit):
        self.commits.append((repo, {operation.path_in_repo for operation in operations}, parent_commit))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_run_goes_out_as_one_commit_of_the_listed_files(finished_run):
    api = Recorder()
    assert publish_run(finished_run, "user/name", True, api) == "https://hub/commit/1"
    assert api.created == ("user/name", True)
    assert api.commits == [("user/name", set(PUBLISHED), "abc")]


def test_nothing_that_names_or_shows_a_patients_film_is_published():
    assert not [name for name in PUBLISHED if "predictions" in name or "samples" in name or "report" in name]


def test_an_unfinished_run_is_refused_before_anything_is_created(tmp_path):
    api = Recorder()
    with pytest.raises(UsageError, match="report.json is missing"):
        publish_run(tmp_path, "user/name", False, api)
    assert not hasattr(api, "created")
