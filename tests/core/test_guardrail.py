import json

import pytest

from pcct_core.guardrail import run_guardrail


@pytest.fixture(scope="module")
def outcome():
    return run_guardrail()


def test_everything_but_the_time_holds(outcome):
    """The time is left to `pcct guardrail`: the machine that runs tests may be busy."""
    checks, _ = outcome
    held = {check.name: check.passed for check in checks}
    assert held.pop("scan time") in (True, False)
    assert held == {
        "certified recall": True,
        "gate prunes": True,
        "no false negative": True,
        "same bytes for any threads": True,
    }


def test_report_says_what_the_checks_say(outcome):
    checks, report = outcome
    assert json.loads(json.dumps(report)) == report
    assert report["passed"] == all(check.passed for check in checks)
    assert report["checks"] == [vars(check) for check in checks]
    assert report["certificate"]["method"] == "gated"
    assert report["certificate"]["gate1_false_negatives"] == 0
    assert report["n"] == 4096
