"""Tables from CSV files."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pfl.errors import DataError
from p2pfl.learning.data import load_data
from p2pfl.learning.tabular import Category, Number, Table, describe, fit, inputs, read_csv, read_preparation, targets


def _csv(folder: Path, text: str, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def people(tmp_path: Path) -> Path:
    rows = [
        f"{20 + i},{['Oslo', 'Rome', 'Bern'][i % 3]},{i % 2 == 0},{100.5 * i},{'yes' if i > 4 else 'no'}"
        for i in range(10)
    ]
    return _csv(tmp_path, "age,city,member,income,buys\n" + "\n".join(rows) + "\n")


def test_describe_says_the_kind_of_each_column(people: Path) -> None:
    expected = ("age: number", "city: category (3)", "member: bool", "income: number", "buys: category (2)")
    assert describe(read_csv(people)) == expected


def test_describe_counts_missing_cells_and_text(tmp_path: Path) -> None:
    rows = "".join(f"name{i},{'' if i < 2 else i}\n" for i in range(51))
    assert describe(read_csv(_csv(tmp_path, "who,x\n" + rows))) == ("who: text (51)", "x: number, 2 missing")


def test_a_text_target_is_classification(people: Path) -> None:
    data = load_data(people, target="buys")
    assert (data.task, data.labels, data.outputs) == ("classification", ("no", "yes"), 2)
    assert (len(data.train), len(data.test), data.input_shape) == (8, 2, (6,))
    assert data.name == "people"


def test_numbers_are_standardized_by_the_training_rows(people: Path) -> None:
    data = load_data(people, target="buys")
    ages = data.train.inputs[:, 0]
    assert float(ages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(ages.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_inputs_follow_the_table_literally(tmp_path: Path) -> None:
    table = Table((Number("age", 30.0, 10.0), Category("city", ("Bern", "Oslo"))), "y", "regression", (), 5.0, 2.0)
    frame = read_csv(_csv(tmp_path, "extra,city,y,age\n1,Oslo,7,40\n1,Rome,5,20\n"))
    assert inputs(frame, table).tolist() == [[1, 0, 1], [-1, 0, 0]]
    assert targets(frame, table).tolist() == [[1], [0]]
    assert table.width == 3


def test_a_float_target_is_regression_in_standard_units(people: Path) -> None:
    data = load_data(people, target="income")
    assert (data.task, data.labels, data.outputs) == ("regression", (), 1)
    table = read_preparation(data.preparation)
    income = data.train.targets[:, 0].double() * table.target_std + table.target_mean
    assert set(np.round(income.numpy(), 1)) <= {100.5 * i for i in range(10)}


def test_an_integer_target_is_classes_up_to_twenty_values(tmp_path: Path) -> None:
    few = load_data(_csv(tmp_path, "x,y\n" + "".join(f"{i},{i % 20 + 3}\n" for i in range(60))), target="y")
    assert few.labels == tuple(str(i) for i in range(3, 23))
    path = _csv(tmp_path, "x,y\n" + "".join(f"{i},{i % 21}\n" for i in range(63)))
    assert load_data(path, target="y").task == "regression"
    assert load_data(path, target="y", task="classification").outputs == 21


def test_a_bool_target_is_classification(people: Path) -> None:
    assert load_data(people, target="member").labels == ("False", "True")


def test_the_preparation_is_json_and_makes_equal_rows_equal_inputs(people: Path, tmp_path: Path) -> None:
    data = load_data(people, target="buys")
    carried = json.loads(json.dumps(data.preparation))
    assert carried["kind"] == "table"
    assert [column["name"] for column in carried["columns"]] == ["age", "city", "member", "income"]
    again = load_data(people, preparation=carried)
    assert again.train.fingerprint() == data.train.fingerprint()
    assert again.labels == data.labels
    other = _csv(tmp_path, "income,city,member,buys,age\n" + "9,Paris,True,yes,99\n" * 5, "other.csv")
    foreign = load_data(other, preparation=carried)
    assert foreign.input_shape == (6,)
    assert foreign.train.inputs[:, 1:4].tolist() == [[0, 0, 0]] * 4
    assert foreign.train.targets.tolist() == [1] * 4


def test_the_held_back_rows_do_not_depend_on_seed_or_part(people: Path) -> None:
    whole = load_data(people, target="buys", seed=1)
    part = load_data(people, target="buys", seed=2, part=(2, 4))
    assert whole.test.fingerprint() == part.test.fingerprint()
    assert len(part.train) == 2


def test_missing_cells_are_refused_by_name_and_count(tmp_path: Path) -> None:
    path = _csv(tmp_path, "a,b,y\n" + "1,,p\n" * 3 + "inf,2,q\n" * 4)
    with pytest.raises(DataError, match=r"empty in 'a' \(4\), 'b' \(3\); fill them, or say --missing drop or"):
        load_data(path, target="y")


def test_missing_cells_can_be_dropped_and_classes_stay_integers(tmp_path: Path) -> None:
    rows = "".join(f"{i},{'' if i == 0 else i % 2}\n" for i in range(11))
    data = load_data(_csv(tmp_path, "x,y\n" + rows), target="y", missing="drop")
    assert (len(data.train) + len(data.test), data.labels) == (10, ("0", "1"))


def test_missing_numbers_can_become_the_mean(tmp_path: Path) -> None:
    rows = "".join(f"{'' if i % 2 else i},{'p' if i < 5 else 'q'}\n" for i in range(10))
    data = load_data(_csv(tmp_path, "x,y\n" + rows), target="y", missing="mean")
    assert int((data.train.inputs == 0).sum() + (data.test.inputs == 0).sum()) >= 5
    with pytest.raises(
        DataError, match=r"empty in 'y' \(1\); fill them, or say --missing drop \(missing= in Python\)$"
    ):
        load_data(_csv(tmp_path, "x,y\n1,p\n2,q\n3,\n4,p\n5,q\n"), target="y", missing="mean")


def test_a_constant_column_stays_finite(tmp_path: Path) -> None:
    data = load_data(_csv(tmp_path, "x,y\n" + "0.1,p\n" * 5 + "0.1,q\n" * 5), target="y")
    assert data.train.inputs.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n" + "1,2\n" * 5, {}, "say which column to predict; people.csv has a, b: name it with --target COLUMN"),
        ("a,b\n" + "1,2\n" * 5, {"target": "c"}, "there is no column 'c'; people.csv has a, b"),
        ("a,b\n1,p\n2,q\n", {"target": "b"}, "give at least 5"),
        ("a,b\n" + "1,2\n" * 5, {"target": "b"}, "is 2 in every row; classes need at least 2 values"),
        ("b\n1\n2\n3\n4\n5\n", {"target": "b"}, "no column besides the target 'b'"),
        ("a,b\n" + "".join(f"n{i},{i % 2}\n" for i in range(51)), {"target": "b"}, "column 'a' is text with 51"),
        ("a,b\n" + "".join(f"{i},n{i}\n" for i in range(30)), {"target": "b"}, "pass task='classification'"),
        ("a,b\n" + "1,p\n2,q\n" * 5, {"target": "b", "task": "regression"}, "is text, which is no amount"),
        ("a,b\n" + "1,p\n2,q\n" * 5, {"target": "b", "task": "ranking"}, "use refuse, drop or mean"),
        ("a,b\n" + "1,p\n2,q\n" * 5, {"target": "b", "missing": "zero"}, "use refuse, drop or mean"),
        ("a,b\n" + ",p\n,q\n" * 5, {"target": "b", "missing": "mean"}, "column 'a' is empty; drop it"),
        ("a,b\n" + "1,p,3\n2,q,4\n" * 5, {"target": "b"}, "more cells than its header line names"),
        ("a,b\n1,2\n1,2,3,4\n", {"target": "b"}, "cannot be read as CSV"),
        ("", {"target": "b"}, "cannot be read as CSV: No columns to parse"),
        ("a,b\n" + "1,p\n2,q\n" * 5, {"preparation": {"kind": "image"}}, "not the preparation of a table"),
        (
            "a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(10)),
            {"target": "b", "part": (1, 2), "alpha": 0.5},
            "alpha",
        ),
    ],
)
def test_bad_tables_are_refused_with_the_mend(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(_csv(tmp_path, text), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preparation_that_does_not_fit_is_refused(people: Path, tmp_path: Path) -> None:
    carried = load_data(people, target="buys").preparation
    with pytest.raises(DataError, match="leave target and task out"):
        load_data(people, target="age", preparation=carried)
    with pytest.raises(DataError, match="no column 'age'"):
        load_data(_csv(tmp_path, "city,member,income,buys\n" + "Oslo,True,1,yes\n" * 5), preparation=carried)
    old = _csv(tmp_path, "city,member,income,buys,age\n" + "Oslo,True,1,yes,old\n" * 5, "old.csv")
    with pytest.raises(DataError, match="column 'age' is text where the preparation has numbers"):
        load_data(old, preparation=carried)
    maybe = _csv(tmp_path, "city,member,income,buys,age\n" + "Oslo,True,1,maybe,3\n" * 5, "maybe.csv")
    with pytest.raises(DataError, match="'buys' has the class 'maybe'; the preparation knows no, yes"):
        load_data(maybe, preparation=carried)
    with pytest.raises(DataError, match="no target column 'buys'"):
        load_data(_csv(tmp_path, "city,member,income,age\n" + "Oslo,True,1,3\n" * 5), preparation=carried)


def test_a_preparation_with_a_zero_deviation_is_refused() -> None:
    table = Table((Number("a", 0.0, 0.0),), "b", "regression")
    with pytest.raises(DataError, match="take one that p2pfl wrote"):
        read_preparation(msgspec.to_builtins(table))


def test_categories_come_from_the_training_rows_and_classes_from_all(tmp_path: Path) -> None:
    frame = read_csv(_csv(tmp_path, "c,y\np,0\nq,1\nr,2\n"))
    table = fit(frame, "y", np.array([0, 1]))
    assert table == Table((Category("c", ("p", "q")),), "y", "classification", ("0", "1", "2"))
