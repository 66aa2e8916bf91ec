import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Experiments make their folder of results where they are."""
    monkeypatch.chdir(tmp_path)
