"""What the synchronous client and session take, the asynchronous ones take: the same names, defaults and types."""

import inspect

import pytest

from pcct_client import AsyncClient, AsyncSession, Client, Session

# By name, what the other class calls the same thing.
OTHERWISE = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
# What has no twin: one opens a session in its own time, for a constructor cannot wait.
ALONE = {"open"}
PAIRS = [(Client, AsyncClient), (Session, AsyncSession)]


def public_functions(of):
    """Return the functions that users call, by name; those that classes inherit from a common base are the same object."""
    return {
        name: value
        for name, value in inspect.getmembers(of, inspect.isfunction)
        if not name.startswith("_") or name in (*OTHERWISE, *OTHERWISE.values())
    }


def taken(function):
    """Return what a function takes: for each parameter its name, kind, default and type."""
    return [
        (each.name, each.kind, each.default, each.annotation)
        for each in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize(("waits", "awaits"), PAIRS, ids=lambda each: each.__name__)
def test_both_have_the_same_functions(waits, awaits):
    named = {OTHERWISE.get(name, name) for name in public_functions(waits)}
    assert named == set(public_functions(awaits)) - ALONE


@pytest.mark.parametrize(
    ("waits", "awaits", "name"),
    [(waits, awaits, name) for waits, awaits in PAIRS for name in public_functions(waits)],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_both_take_the_same(waits, awaits, name):
    assert taken(getattr(waits, name)) == taken(getattr(awaits, OTHERWISE.get(name, name)))


def test_clients_are_made_alike():
    assert taken(Client.__init__)[:-1] == taken(AsyncClient.__init__)[:-1]
    assert [name for name, *_ in taken(Client.__init__)] == [name for name, *_ in taken(AsyncClient.__init__)]
