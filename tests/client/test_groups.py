import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest

from pcct_client import calls
from pcct_client.errors import InvalidArray
from pcct_client.groups import number_groups, take_groups
from pcct_core.columns import as_groups

LABELS = ["b", "a", "b", "c", "a"]
DAY = datetime.date(2026, 1, 1)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        tuple(LABELS),
        np.array(LABELS),
        pd.Series(LABELS),
        pd.Series(LABELS, dtype="category"),
        pl.Series(LABELS),
        np.array([7, 3, 7, 2**62, 3]),
        np.array([0.5, -1.0, 0.5, np.inf, -1.0], np.float32),
        np.array([[True], [False], [True], [True], [False]]),
        np.array(["2026-01-01", "2026-01-02"], "M8[D]")[[0, 1, 0, 0, 1]],
        [DAY, (1, 2), DAY, None.__class__, (1, 2)],
        np.ma.array([1, 2, 1, 1, 2]),
    ],
)
def test_number_groups_numbers_as_the_core_does(labels):
    np.testing.assert_array_equal(number_groups(labels), as_groups(labels))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, None], "row 1 of groups is None"),
        (np.array([0.0, np.nan]), "row 1 of groups is nan"),
        (pd.Series(["a", pd.NA]), "row 1 of groups is"),
        (pd.Series([pd.NaT, pd.Timestamp(0)]), "row 0 of groups is"),
        (np.array(["NaT"], "M8[s]"), "row 0 of groups is None"),
        (np.ma.array([1, 2], mask=[0, 1]), "row 1 of groups is None"),
        ([[1], [2]], "no label; use numbers"),
        (np.zeros((2, 2)), "one label for every point"),
        (3, "one label for every point"),
    ],
)
def test_number_groups_refuses_points_without_a_label(labels, words):
    with pytest.raises(InvalidArray, match=words):
        number_groups(labels)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_column_of_labels_is_no_coordinate(frame):
    points = frame({"x": [0.0, 1.0], "site": ["a", "b"], "y": [2.0, 3.0]})
    columns, spec = take_groups(points, None, {"k": 1, "groups": "site"})
    assert (columns, list(spec["groups"]), spec["k"]) == (["x", "y"], ["a", "b"], 1)
    assert take_groups(points, ["y"], {"groups": "site"})[0] == ["y"]
    with pytest.raises(InvalidArray, match="no such column; the frame has 'x', 'site', 'y'"):
        take_groups(points, None, {"groups": "sites"})


def test_a_column_is_named_in_frames_alone():
    with pytest.raises(InvalidArray, match="give the labels themselves"):
        take_groups(np.zeros((3, 2)), None, {"groups": "site"})
    assert take_groups(np.zeros((3, 2)), None, {"groups": LABELS}) == (None, {"groups": LABELS})


def test_groups_travel_as_a_dataset():
    flow = calls.graph("d" * 64, {"kind": "knn", "groups": LABELS}, calls.Deadline(5))
    column = next(flow).work()
    np.testing.assert_array_equal(column, as_groups(LABELS))
    body = flow.send(column)
    call = flow.send(body.work())
    assert call.path.startswith("v1/datasets/")


def test_no_groups_are_not_told():
    call = next(calls.graph("d" * 64, {"kind": "knn", "groups": None}, calls.Deadline(5)))
    assert call.document["spec"] == {"kind": "knn"}
