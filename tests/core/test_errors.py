import pickle

import pytest

from pcct_core import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidPoints("row 3 is wrong", 3),
        errors.InvalidPoints("no rows"),
        errors.InvalidSpec("k is 0", "k"),
        errors.FileFormatError("version 9"),
        errors.Cancelled("stopped"),
    ],
)
def test_errors_are_of_one_family_and_say_what_they_were_told(error):
    assert isinstance(error, errors.PcctError)
    assert str(error) == error.args[0]


def test_input_errors_are_value_errors():
    for kind in (errors.InvalidPoints, errors.InvalidSpec):
        assert issubclass(kind, errors.InvalidInput)
        assert issubclass(kind, ValueError)
    assert not issubclass(errors.Cancelled, ValueError)


def test_input_errors_cross_processes():
    for error in (errors.InvalidPoints("row 3", 3), errors.InvalidPoints("no rows"), errors.InvalidSpec("k is 0", "k")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.args, vars(again)) == (type(error), error.args, vars(error))
