import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.errors import Cancelled, InvalidInput
from pcct_core.parallel import Crew


def covered(crew, total, grain=1, together=1):
    """Run a loop; return its chunks in the order of their items, and the threads that took part.

    together: number of threads that wait for each other in the first chunks, so that each has taken one.
    """
    chunks, members = [], set()
    gate = threading.Barrier(together, timeout=60)

    def work(start, stop):
        if start < together:
            gate.wait()
        chunks.append((start, stop))
        members.add(threading.current_thread())

    crew.run("loop", total, work, grain=grain)
    return sorted(chunks), members


@given(st.integers(0, 400), st.integers(1, 50), st.integers(1, 4))
def test_run_covers_every_item_once(total, grain, threads):
    with Crew(threads) as crew:
        chunks, _ = covered(crew, total, grain)
    assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks)][: len(chunks)]
    assert not total or chunks[-1][1] == total
    assert all(stop > start for start, stop in chunks)


def test_run_uses_its_threads_and_the_caller():
    with Crew(3) as crew:
        _, threads = covered(crew, 60, together=3)
    assert threading.current_thread() in threads
    assert len(threads) == 3


def test_run_with_one_thread_stays_in_the_caller():
    with Crew(1) as crew:
        _, threads = covered(crew, 20)
    assert threads == {threading.current_thread()}


def test_crew_takes_a_thread_per_available_core():
    assert Crew().threads >= 1


@pytest.mark.parametrize("threads", [0, -2])
def test_crew_refuses_less_than_one_thread(threads):
    with pytest.raises(InvalidInput, match=f"threads is {threads}"):
        Crew(threads)


def test_run_reports_from_nothing_to_all():
    said = []
    with Crew(2, progress=lambda *report: said.append(report)) as crew:
        crew.run("loop", 300, lambda a, b: time.sleep(0.001 * (b - a)))
    assert said[0] == ("loop", 0, 300)
    assert said[-1] == ("loop", 300, 300)
    done = [each[1] for each in said]
    assert done == sorted(done)
    assert done.count(300) == 1


def test_run_reports_often_enough():
    times = []
    with Crew(1, progress=lambda *_: times.append(time.monotonic())) as crew:
        crew.run("loop", 60, lambda a, b: time.sleep(0.01 * (b - a)))
    assert len(times) >= 6


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_run_raises_the_first_error_of_any_thread(threads):
    def fail_late(start, stop):
        time.sleep(0.001)
        if start >= 30:
            raise ZeroDivisionError(start)

    with Crew(threads) as crew, pytest.raises(ZeroDivisionError):
        crew.run("loop", 100, fail_late)
    assert alive() == []


def test_run_raises_an_error_of_a_helper():
    def fail_elsewhere(start, stop):
        time.sleep(0.002)
        if threading.current_thread() is not caller:
            raise ZeroDivisionError

    caller = threading.current_thread()
    with Crew(2) as crew, pytest.raises(ZeroDivisionError):
        crew.run("loop", 1000, fail_elsewhere)


@pytest.mark.parametrize("threads", [1, 3])
def test_run_stops_between_chunks_once_cancelled(threads):
    token = threading.Event()
    seen = []

    def work(start, stop):
        seen.append(start)
        time.sleep(0.001)
        if len(seen) == 10:
            token.set()

    with Crew(threads, cancel=token) as crew, pytest.raises(Cancelled):
        crew.run("loop", 100_000, work)
    assert len(seen) < 10 + 2 * threads
    assert alive() == []


def test_check_raises_only_when_set():
    token = threading.Event()
    crew = Crew(1, cancel=token)
    crew.check()
    token.set()
    with pytest.raises(Cancelled, match="nothing was kept"):
        crew.check()


def test_crew_can_run_again_after_an_error():
    with Crew(2) as crew:
        with pytest.raises(ZeroDivisionError):
            crew.run("loop", 10, lambda a, b: 1 // 0)
        chunks, _ = covered(crew, 10)
    assert chunks[-1][1] == 10


def test_no_thread_outlives_its_crew():
    with Crew(4) as crew:
        covered(crew, 50, together=4)
        assert alive()
    assert alive() == []


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("pcct-core")]
