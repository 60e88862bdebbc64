"""The files of a run, read back: live and simulated runs write the same ones."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from p2pfl.errors import DataError
from p2pfl.events import RunEvent
from p2pfl.recipe import Recipe, run_recipe_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


@dataclass(frozen=True)
class Run:
    """A folder `runs/<name>/`. Its parts are read when asked for."""

    folder: Path

    @cached_property
    def recipe(self) -> Recipe:
        """The settings of the run."""
        data = self._bytes("recipe.toml")
        try:
            return run_recipe_of(msgspec.toml.decode(data))
        except msgspec.DecodeError as error:
            raise DataError(f"{self.folder / 'recipe.toml'} is damaged: {error}") from error

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `--json` printed."""
        data = self._bytes("summary.json")
        try:
            return msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(f"{self.folder / 'summary.json'} is damaged: {error}") from error

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """A row for each peer and round."""
        return self._table("metrics.csv")

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """A row for each share that was sent: round, from, to, bytes."""
        return self._table("edges.csv")

    @cached_property
    def partition(self) -> "pd.DataFrame":
        """Training examples by peer and label."""
        return self._table("partition.csv")

    @cached_property
    def events(self) -> tuple[RunEvent, ...]:
        """Everything that happened, in order; of a run that was killed, all but the line it died in."""
        decoder: msgspec.json.Decoder[RunEvent] = msgspec.json.Decoder(RunEvent)
        lines = self._bytes("events.jsonl").split(b"\n")[:-1]
        try:
            return tuple(decoder.decode(line) for line in lines)
        except msgspec.DecodeError as error:
            raise DataError(f"{self.folder / 'events.jsonl'} is damaged: {error}") from error

    @property
    def peers(self) -> tuple[str, ...]:
        """The names of the peers that saved a model."""
        return tuple(sorted(path.stem for path in (self.folder / "models").glob("*.safetensors")))

    def model(self, peer: str) -> "nn.Module":
        """The model with which a peer ended. Raises ModelError."""
        from p2pfl.model_files import load_model

        return load_model(self.folder / "models" / f"{peer}.safetensors")

    def _table(self, name: str) -> "pd.DataFrame":
        import io

        import pandas as pd

        names = dict.fromkeys(("peer", "from", "to", "label"), str)
        try:
            # A peer may be called "nan", or "7".
            return pd.read_csv(io.BytesIO(self._bytes(name)), dtype=names, keep_default_na=False, na_values=[""])
        except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
            raise DataError(f"{self.folder / name} is empty or damaged: {error}") from error

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"the run {self.folder} has no {name}: {error.strerror}") from error


def load_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        DataError: there is no run.
    """
    run = Run(Path(folder))
    if not (run.folder / "events.jsonl").exists():
        raise DataError(f"{folder} holds no run: it has no events.jsonl")
    return run
