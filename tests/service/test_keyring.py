import re

import pytest

from pcct_core.errors import PcctError
from service.keyring import create_key, list_keys, revoke_key
from worker.settings import SharedSettings


@pytest.fixture(params=["named", "data directory"])
def settings(request, tmp_path):
    """A store that runs, and the one of a data directory, which does not yet."""
    if request.param == "named":
        return SharedSettings(redis_url=request.getfixturevalue("valkey_url"))
    return SharedSettings(data_dir=tmp_path / "data")


def test_keys_are_made_listed_and_revoked(settings, capsys):
    create_key(settings, "team-a", "write", "laptop")
    made = capsys.readouterr()
    found = re.fullmatch(r"pcct_([0-9a-f]{16})_([0-9a-f]{64})\n", made.out)
    assert found
    id, secret = found.groups()
    assert id in made.err
    assert secret not in made.err
    list_keys(settings)
    listed = capsys.readouterr().out
    for word in (id, "team-a", "write", "laptop"):
        assert word in listed
    assert secret not in listed
    revoke_key(settings, id)
    capsys.readouterr()
    list_keys(settings)
    assert id not in capsys.readouterr().out
    with pytest.raises(PcctError, match=f"no key {id}"):
        revoke_key(settings, id)


@pytest.mark.parametrize(("namespace", "scope", "label"), [("A", "read", ""), ("a", "root", ""), ("a", "read", "\n")])
def test_keys_that_cannot_be_are_refused(valkey_url, namespace, scope, label):
    with pytest.raises(PcctError):
        create_key(SharedSettings(redis_url=valkey_url), namespace, scope, label)


def test_a_store_that_is_away_is_said_without_its_password(tmp_path):
    with pytest.raises(PcctError, match="does not answer") as refused:
        list_keys(SharedSettings(redis_url="redis://user:hidden@127.0.0.1:1/0"))
    assert "hidden" not in str(refused.value)
