"""Worker processes that die or hang, at whatever moment, cost their own calls only."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest

from streamprep import process_pool
from streamprep.process_pool import DiedError, NotStartedError, ProcessPool

Make = Callable[..., ProcessPool]
LONG = 3600.0


def nothing() -> None: ...


def leave(code: int) -> None:
    os._exit(code)


def hang() -> None:
    time.sleep(LONG)


def first_or_leave(flag: Path) -> None:
    """Be the first to come here, or end."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        os._exit(4)


def identity(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def refuse(text: str) -> None:
    raise ValueError(text)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


class Deadly:
    """Kills the process that sends it."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Refusing:
    """Cannot be sent."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


class Unreadable:
    """Can be sent, and not be read."""

    def __reduce__(self) -> Any:
        return refuse, ("not to be read",)


def make_it(kind: type) -> Any:
    return kind()


def die_and_leave_a_child(told: Path) -> None:
    """The child holds all that the process has open, its pipe among it."""
    child = os.fork()
    if child == 0:
        time.sleep(LONG)
    told.write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_child_and_hang(told: Path) -> None:
    child = os.fork()
    if child != 0:
        told.write_text(str(child))
    time.sleep(LONG)


def fork_and_let_the_child_go_on(told: Path) -> str:
    """The child raises; both come to where a process answers."""
    child = os.fork()
    if child == 0:
        raise ValueError("the child")
    os.waitpid(child, 0)
    told.touch()
    return "the parent"


def pipe_of_this_process() -> int:
    """Its only socket."""
    (found,) = [int(made.name) for made in Path("/proc/self/fd").iterdir() if made.is_socket()]
    return found


def answer_again_on(flag: Path) -> None:
    def again() -> None:
        while not flag.exists():
            time.sleep(0.01)
        os.write(pipe_of_this_process(), struct.pack("!i", 1) + b"?")

    threading.Thread(target=again, daemon=True).start()


def answer_half() -> None:
    os.write(pipe_of_this_process(), struct.pack("!i", 1000) + b"half")
    time.sleep(LONG)


def begin(flag: Path) -> None:
    flag.touch()
    time.sleep(LONG)


@pytest.fixture
def make() -> Iterator[Make]:
    pools = []

    def build(size: int = 2, prepare: Callable[[], object] = nothing, start: float = 60.0) -> ProcessPool:
        pools.append(ProcessPool(size, prepare, start_timeout_seconds=start))
        return pools[-1]

    yield build
    for pool in pools:
        pool.stop()


def error_of(call: Future[Any]) -> BaseException | None:
    try:
        return call.exception(timeout=60.0)
    except CancelledError as error:
        return error


def test_calls_return_and_raise_what_their_functions_do(make: Make) -> None:
    pool = make()
    calls = [pool.call(identity, number) for number in range(20)]
    assert [call.result(60.0) for call in calls] == list(range(20))
    with pytest.raises(ValueError, match="so it is") as caught:
        pool.call(refuse, "so it is").result(60.0)
    assert "in refuse" in caught.value.__notes__[0], "it tells where"


def test_each_call_ends_as_its_own_process_does(make: Make) -> None:
    """Those that die beside others, one after the other, and in the middle of their answer."""
    pool = make(3)
    ways: dict[str, tuple[Callable[[], Future[Any]], type[BaseException] | None]] = {
        "returns": (lambda: pool.call(identity, 1), None),
        "raises": (lambda: pool.call(refuse, ""), ValueError),
        "is killed": (lambda: pool.call(die, signal.SIGKILL), DiedError),
        "leaves": (lambda: pool.call(leave, 3), DiedError),
        "dies while it answers": (lambda: pool.call(make_it, Deadly), DiedError),
        "answers what cannot be sent": (lambda: pool.call(make_it, Refusing), TypeError),
        "answers what cannot be read": (lambda: pool.call(make_it, Unreadable), ValueError),
        "is given what cannot be sent": (lambda: pool.call(identity, Refusing()), TypeError),
        "takes too long": (lambda: pool.call(hang, timeout_seconds=0.3), TimeoutError),
    }
    made = [(name, ask()) for _ in range(3) for name, (ask, _) in ways.items()]
    for name, call in made:
        expected = ways[name][1]
        error = error_of(call)
        assert type(error) is (type(None) if expected is None else expected), (name, error)
    assert pool.call(identity, 2).result(60.0) == 2
    codes = {name: error.code for name, call in made if isinstance(error := error_of(call), DiedError)}
    assert codes == {"is killed": -9, "leaves": 3, "dies while it answers": -9}


def test_a_death_is_noticed_though_a_child_holds_the_pipe(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process_pool, "LOOK_SECONDS", 0.05)
    call = make(1).call(die_and_leave_a_child, tmp_path / "child")
    try:
        assert isinstance(error_of(call), DiedError)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_children_of_a_killed_process_hold_up_no_other_call(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process_pool, "GRACE_SECONDS", LONG)
    pool = make(1)
    call = pool.call(leave_a_child_and_hang, tmp_path / "child", timeout_seconds=1.0)
    try:
        assert isinstance(error_of(call), TimeoutError)
        assert pool.call(identity, 1).result(60.0) == 1
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_child_that_an_operation_forked_answers_nothing(make: Make, tmp_path: Path) -> None:
    pool = make(1)
    assert pool.call(fork_and_let_the_child_go_on, tmp_path / "flag").result(60.0) == "the parent"
    assert [pool.call(identity, number).result(60.0) for number in range(5)] == list(range(5))


def test_an_answer_that_nobody_asked_for_ends_its_process_only(
    make: Make, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    pool = make(1)
    pool.call(answer_again_on, tmp_path / "flag").result(60.0)
    (tmp_path / "flag").touch()
    eventually(lambda: not multiprocessing.active_children(), 60.0)
    assert pool.call(identity, 1).result(60.0) == 1


def test_a_process_that_takes_nothing_holds_up_no_other_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pipe is full, and the thread that serves all of them writes into it."""
    monkeypatch.setattr(process_pool, "STALL_SECONDS", 0.2)
    pool = make(1)
    os.kill(pool.call(pid).result(60.0), signal.SIGSTOP)
    assert len(pool.call(identity, bytes(1 << 24)).result(60.0)) == 1 << 24


def test_a_process_that_stops_in_the_middle_of_its_answer_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(process_pool, "GRACE_SECONDS", 0.2)
    pool = make(1)
    assert isinstance(error_of(pool.call(answer_half)), DiedError)
    assert pool.call(identity, 1).result(60.0) == 1


def test_a_process_that_dies_just_before_it_is_given_a_call_costs_no_call(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(1)
    before = pool.call(pid).result(60.0)
    hand_out = pool._hand_out

    def late() -> None:
        if pool._waiting:
            monkeypatch.undo()
            os.kill(before, signal.SIGKILL)
            os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
        hand_out()

    monkeypatch.setattr(pool, "_hand_out", late)
    assert pool.call(pid).result(60.0) != before


def test_a_process_that_died_idle_costs_no_call(make: Make, eventually: Callable[..., None]) -> None:
    pool = make(1)
    os.kill(before := pool.call(pid).result(60.0), signal.SIGKILL)
    eventually(lambda: not multiprocessing.active_children(), 60.0)
    assert pool.call(pid).result(60.0) != before


def test_a_call_is_cancelled_wherever_it_is(make: Make, tmp_path: Path, eventually: Callable[..., None]) -> None:
    pool = make(1)
    running, waiting, last = pool.call(begin, tmp_path / "flag"), pool.call(identity, 1), pool.call(identity, 2)
    eventually((tmp_path / "flag").exists, 60.0)
    pool.cancel(waiting)
    pool.cancel(running)
    assert isinstance(error_of(running), CancelledError)
    assert isinstance(error_of(waiting), CancelledError)
    assert last.result(60.0) == 2
    pool.cancel(last)
    assert last.result(60.0) == 2, "what is done stays done"


@pytest.mark.parametrize(
    ("prepare", "seconds", "words"),
    [
        (functools.partial(leave, 4), 60.0, r"the last one ended before it was ready \(exit code 4\)"),
        (hang, 0.5, "the last one was not ready within start_timeout_seconds = 0.5"),
    ],
    ids=["leave", "hang"],
)
def test_where_no_process_gets_ready_the_calls_are_given_back(
    make: Make, prepare: Callable[[], object], seconds: float, words: str
) -> None:
    calls = [make(2, prepare, seconds).call(identity, number) for number in range(3)]
    for call in calls:
        with pytest.raises(NotStartedError, match=words):
            call.result(60.0)


def test_where_one_of_several_never_gets_ready_the_others_do_the_work(make: Make, tmp_path: Path) -> None:
    pool = make(3, functools.partial(first_or_leave, tmp_path / "flag"))
    assert [call.result(60.0) for call in [pool.call(identity, number) for number in range(50)]] == list(range(50))


def test_processes_that_cannot_be_started_are_told_with_the_reason(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SpawnProcess, "start", lambda _: Path("/nowhere").stat())
        pool = make()
        error = error_of(pool.call(identity, 1))
    assert isinstance(error, NotStartedError)
    assert isinstance(error.__cause__, FileNotFoundError)
    assert pool.call(identity, 1).result(60.0) == 1


def test_no_room_for_another_pipe_is_told_and_the_pool_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(1)
    with monkeypatch.context() as patched:
        patched.setattr(process_pool, "Pipe", lambda: os.open("/nowhere", os.O_RDONLY))
        error = error_of(pool.call(identity, 1))
    assert isinstance(error, NotStartedError)
    assert isinstance(error.__cause__, FileNotFoundError)
    assert pool.call(identity, 1).result(60.0) == 1


def test_no_more_processes_than_there_is_work_for(make: Make) -> None:
    pool = make(8)
    assert len({pool.call(pid).result(60.0) for _ in range(5)}) == 1


def test_what_is_stopped_leaves_no_process_and_no_call_behind(
    make: Make, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    pool = make(2)
    calls = [pool.call(begin, tmp_path / str(number)) for number in range(5)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 2, 60.0)
    pool.stop()
    assert [type(error_of(call)) for call in calls] == [CancelledError] * 5
    assert multiprocessing.active_children() == []
    with pytest.raises(RuntimeError, match="has ended"):
        pool.call(identity, 1)


def test_a_fault_of_the_pool_itself_lets_nobody_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make(1)
    assert pool.call(identity, 1).result(60.0) == 1
    monkeypatch.setattr(pool, "_hand_out", lambda: [][0])
    assert isinstance(error_of(pool.call(identity, 1)), NotStartedError)
    with pytest.raises(RuntimeError, match="has ended"):
        pool.call(identity, 1)
