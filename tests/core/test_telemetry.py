import json
import time

import pytest

from pcct_core.telemetry import Telemetry


def test_phase_adds_up_the_time_of_its_blocks():
    telemetry = Telemetry()
    for _ in range(3):
        with telemetry.phase("tree"):
            time.sleep(0.01)
    with telemetry.phase("search"):
        pass
    assert telemetry.seconds["tree"] >= 0.03
    assert 0 <= telemetry.seconds["search"] < telemetry.seconds["tree"]


def test_phase_counts_a_block_that_failed():
    telemetry = Telemetry()
    with pytest.raises(KeyError), telemetry.phase("tree"):
        raise KeyError
    assert "tree" in telemetry.seconds


def test_to_json_is_plain():
    telemetry = Telemetry({"tree": 0.1234567891}, {"n": 3})
    assert json.loads(json.dumps(telemetry.to_json())) == {"seconds": {"tree": 0.123457}, "counts": {"n": 3}}


def test_telemetries_share_nothing():
    one = Telemetry()
    one.counts["n"] = 1
    assert Telemetry().counts == {}
