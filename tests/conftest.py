"""What every test has: a home of its own, so that none reads or leaves keys and identities of the user's."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`P2PFL_HOME` of this test and of the processes it starts. Not made before something is kept there."""
    folder = tmp_path_factory.mktemp("home") / "p2pfl"
    monkeypatch.setenv("P2PFL_HOME", str(folder))
    return folder
