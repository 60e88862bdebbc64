"""Tables: CSV columns to standardized numbers and one-hot categories, by a preparation that can travel."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import DataError
from p2pfl.learning.examples import JSON, Data, Examples, Task, hold_back

if TYPE_CHECKING:
    import pandas as pd

Missing: TypeAlias = Literal["refuse", "drop", "mean"]  # what to do about empty cells

_MAX_CATEGORIES = 50
_MAX_CLASSES = 20  # more distinct integers than this are taken for amounts, unless the task is given


class Number(msgspec.Struct, frozen=True, tag_field="kind", tag="number"):
    """A column that becomes (x - mean) / std; an empty cell under missing="mean" becomes 0."""

    name: str
    mean: float
    std: float  # above 0; 1 for a constant column


class Category(msgspec.Struct, frozen=True, tag_field="kind", tag="category"):
    """A column that becomes one 0/1 input a category; a value never seen in training becomes all zeros."""

    name: str
    categories: tuple[str, ...]


class Table(msgspec.Struct, frozen=True, tag_field="kind", tag="table"):
    """How rows become inputs and targets; in JSON it is `Data.preparation`.

    A regression target is standardized like an input, so that one learning rate fits dollars and fractions: a
    prediction p means p * target_std + target_mean.
    """

    columns: tuple[Number | Category, ...]
    target: str
    task: Task
    labels: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0

    @property
    def width(self) -> int:
        """Inputs that a row becomes."""
        return sum(1 if isinstance(column, Number) else len(column.categories) for column in self.columns)


def load_table(
    path: Path,
    target: str | None,
    *,
    task: Task | None = None,
    missing: Missing = "refuse",
    preparation: Mapping[str, JSON] | None = None,
) -> Data:
    """Read a CSV file with a header line; a fixed fifth of its rows is held back for testing.

    Args:
        target: the column to predict.
        task: None takes text, bools and up to 20 distinct integers for classes, everything else for amounts.
        missing: "refuse" names the columns with empty cells, "drop" leaves their rows out, "mean" puts the training
            mean into numbers.
        preparation: another peer's, so that equal rows become equal inputs; None fits one to the training rows.

    Raises:
        DataError: a file, column, cell or preparation that cannot be used.
    """
    frame = read_csv(path)
    if preparation is not None:
        table = read_preparation(preparation)
        if target not in (None, table.target) or task not in (None, table.task):
            raise DataError(f"the preparation predicts {table.target!r} by {table.task}; leave target and task out")
        named = [*(column.name for column in table.columns), table.target]
        frame = _complete(frame[[name for name in named if name in frame]], table.target, missing)
        train, test = hold_back(len(frame))
    else:
        if target is None or target not in frame:
            problem = "say which column to predict" if target is None else f"there is no column {target!r}"
            columns = ", ".join(map(str, frame.columns))
            raise DataError(f"{problem}; {path.name} has {columns}: name it with --target COLUMN, or target= in Python")
        frame = _complete(frame, target, missing)
        train, test = hold_back(len(frame))
        table = fit(frame, target, train, task)
    parts = [
        Examples(torch.from_numpy(inputs(part, table)), torch.from_numpy(targets(part, table)))
        for part in (frame.iloc[train], frame.iloc[test])
    ]
    outputs = len(table.labels) if table.task == "classification" else 1
    return Data(
        path.stem, parts[0], parts[1], table.task, (table.width,), outputs, table.labels, msgspec.to_builtins(table)
    )


def read_csv(path: Path) -> "pd.DataFrame":
    """The rows of a CSV file; infinite numbers count as empty cells."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, skipinitialspace=True, low_memory=False)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path} cannot be read as CSV: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas then takes the first column for row names
        raise DataError(f"{path.name} has rows with more cells than its header line names; name every column")
    frame.columns = frame.columns.astype(str)
    return frame.replace([np.inf, -np.inf], np.nan)


def describe(frame: "pd.DataFrame") -> tuple[str, ...]:
    """One line a column for people: "age: number", "city: category (3)", with missing cells counted."""
    lines = []
    for name in frame.columns:
        column = frame[name]
        kind = _kind(column)
        if kind in ("category", "text"):
            kind += f" ({column.nunique()})"
        empty = int(column.isna().sum())
        lines.append(f"{name}: {kind}" + (f", {empty} missing" if empty else ""))
    return tuple(lines)


def fit(frame: "pd.DataFrame", target: str, train: npt.NDArray[np.int64], task: Task | None = None) -> Table:
    """Measure means, deviations and categories on the training rows; class names come from all rows.

    Raises:
        DataError: no usable columns, text with more than 50 different values, or a target that does not fit the task.
    """
    columns: list[Number | Category] = []
    rows = frame.iloc[train]
    for name in frame.columns:
        if name == target:
            continue
        kind = _kind(frame[name])
        if kind == "text":
            raise DataError(
                f"column {name!r} is text with {frame[name].nunique()} different values and at most {_MAX_CATEGORIES} "
                "can be categories; drop the column or group its values"
            )
        if kind == "category":
            columns.append(Category(name, tuple(sorted(rows[name].astype(str).unique()))))
        else:
            columns.append(Number(name, *_moments(name, rows[name])))
    if not columns:
        raise DataError(f"there is no column besides the target {target!r}; add what it is to be predicted from")
    found = _task(target, frame[target], task)
    if found == "regression":
        return Table(tuple(columns), target, found, (), *_moments(target, rows[target]))
    labels = tuple(str(value) for value in sorted(frame[target].unique().tolist()))
    if len(labels) < 2:
        raise DataError(f"the target {target!r} is {', '.join(labels)} in every row; classes need at least 2 values")
    return Table(tuple(columns), target, found, labels)


def inputs(frame: "pd.DataFrame", table: Table) -> npt.NDArray[np.float32]:
    """[rows, table.width] inputs of any rows; columns that the table does not name are passed over.

    Raises:
        DataError: a column is absent, or text where the table has numbers.
    """
    out = np.zeros((len(frame), table.width), dtype=np.float32)
    at = 0
    for column in table.columns:
        if column.name not in frame:
            raise DataError(f"there is no column {column.name!r}; the preparation needs it: add it")
        values = frame[column.name]
        if isinstance(column, Number):
            out[:, at] = np.nan_to_num((_floats(column.name, values) - column.mean) / column.std)
            at += 1
        else:
            for category in column.categories:
                out[:, at] = (values.astype(str) == category).to_numpy()
                at += 1
    return out


def targets(frame: "pd.DataFrame", table: Table) -> npt.NDArray[Any]:
    """[rows] int64 positions among the labels, or [rows, 1] float32 standardized numbers.

    Raises:
        DataError: the target is absent, a class is not among the labels, or an amount is text.
    """
    if table.target not in frame:
        raise DataError(f"there is no target column {table.target!r}; add it")
    column = frame[table.target]
    if table.task == "regression":
        numbers = (_floats(table.target, column) - table.target_mean) / table.target_std
        return numbers.astype(np.float32)[:, None]
    positions = {label: index for index, label in enumerate(table.labels)}
    unknown = sorted(set(column.astype(str)) - set(positions))
    if unknown:
        raise DataError(f"{table.target!r} has the class {unknown[0]!r}; the preparation knows {', '.join(positions)}")
    return column.astype(str).map(positions).to_numpy(dtype=np.int64, copy=True)


def read_preparation(preparation: Mapping[str, JSON]) -> Table:
    """Check what `Data.preparation` of a table says.

    Raises:
        DataError: not a table's preparation.
    """
    try:
        table = msgspec.convert(preparation, Table, strict=True)
    except msgspec.ValidationError as error:
        raise DataError(f"this is not the preparation of a table ({error}); take one that p2pfl wrote") from error
    moments = [(column.mean, column.std) for column in table.columns if isinstance(column, Number)]
    for mean, std in [*moments, (table.target_mean, table.target_std)]:
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise DataError(f"a preparation cannot have the mean {mean} and std {std}; take one that p2pfl wrote")
    return table


def _kind(column: "pd.Series[Any]") -> str:
    import pandas as pd

    if pd.api.types.is_bool_dtype(column):
        return "bool"
    if pd.api.types.is_numeric_dtype(column):
        return "number"
    return "category" if column.nunique() <= _MAX_CATEGORIES else "text"


def _task(name: str, column: "pd.Series[Any]", task: Task | None) -> Task:
    import pandas as pd

    distinct = column.nunique()
    is_text = _kind(column) in ("category", "text")
    if task == "regression" and is_text:
        raise DataError(f"the target {name!r} is text, which is no amount; pass task='classification'")
    if task is not None:
        return task
    if distinct <= _MAX_CLASSES:
        return "regression" if pd.api.types.is_float_dtype(column) else "classification"
    if is_text:
        raise DataError(
            f"the target {name!r} is text with {distinct} different values; "
            "if they are classes, pass task='classification'"
        )
    return "regression"


def _complete(frame: "pd.DataFrame", target: str, missing: Missing) -> "pd.DataFrame":
    """The frame without the empty cells that `missing` does not allow."""
    import pandas as pd

    if missing == "drop":
        whole = frame.dropna()
        for name in frame.columns[frame.isna().any()]:
            # pandas reads integers as floats where cells are empty; classes must become integers again.
            if pd.api.types.is_float_dtype(whole[name]) and (whole[name] % 1 == 0).all():
                whole = whole.astype({name: np.int64})
        return whole
    allowed = {
        name for name in frame.columns if missing == "mean" and name != target and _kind(frame[name]) == "number"
    }
    empty = {str(name): int(count) for name, count in frame.isna().sum().items() if count and name not in allowed}
    if empty:
        named = ", ".join(f"{name!r} ({count})" for name, count in empty.items())
        also = "" if missing == "mean" else " or, for numbers, --missing mean"
        raise DataError(f"cells are empty in {named}; fill them, or say --missing drop{also} (missing= in Python)")
    return frame


def _floats(name: str, column: "pd.Series[Any]") -> npt.NDArray[np.float64]:
    if _kind(column) not in ("number", "bool"):
        raise DataError(f"column {name!r} is text where the preparation has numbers; mend or drop its odd cells")
    return column.to_numpy(dtype=np.float64)


def _moments(name: str, column: "pd.Series[Any]") -> tuple[float, float]:
    """Mean and standard deviation of the cells that are not empty; 1 for the deviation of a constant."""
    values = _floats(name, column)
    values = values[~np.isnan(values)]
    if not len(values):
        raise DataError(f"column {name!r} is empty; drop it")
    mean, std = float(values.mean()), float(values.std())
    # Rounding leaves a constant column a deviation of about 1e-17 of its value.
    return mean, std if std > 1e-12 * abs(mean) else 1.0
