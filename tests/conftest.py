"""What every test has, and what many ask for.

Each has a home of its own, so that none reads or leaves keys and identities of the user's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from raw_ends import Wire


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`P2PFL_HOME` of this test and of the processes it starts. Not made before something is kept there."""
    folder = tmp_path_factory.mktemp("home") / "p2pfl"
    monkeypatch.setenv("P2PFL_HOME", str(folder))
    return folder


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """The test runs over plain HTTP, and over TLS."""
    from raw_ends import Wire  # here, as few tests need what it imports

    return Wire(request.param)


@pytest.fixture(scope="session")
def bomb() -> bytes:
    from raw_ends import zeros_packed

    return zeros_packed()
