"""A program under test cannot exceed its limits, whatever it writes, prints or starts; reports say why it failed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from c_port import QUESTIONS, UNSUPPORTED, answers, ended
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.external.answer_file import most_bytes, read_answer_file
from magma_conformance.external.program import Program
from magma_conformance.external.supervised import run_supervised
from magma_conformance.task import Task
from magma_conformance.vectors import FILES, load
from magma_conformance.wire.hex_arrays import to_json
from magma_conformance.wire.request_text import Question, write_request
from magma_conformance.wire.task_json import describe_task

from magma_core import AdamW, magma
from magma_core.state_file.config import base_to_plain, rule_to_plain

LIMIT = 60.0  # seconds; a program that this bounds fails its test by the answer, however slow the machine is


@contextmanager
def memory(most: int) -> Iterator[None]:
    """See that what is allocated in here never exceeds this many bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("answer.mkdir()", "cannot be read: not a regular file"),
        ("import os; os.mkfifo(answer)", "cannot be read: not a regular file"),
        ("answer.symlink_to('/dev/zero')", "cannot be read: not a regular file"),
        ("answer.symlink_to(request)", "cannot be read: not a regular file"),
        ("answer.open('wb').truncate(2**40)", "cannot be read: more than"),
    ],
    ids=["folder", "pipe", "device", "link", "sparse"],
)
def test_what_is_no_answer_file(tmp_path, body, said):
    found = answers(tmp_path, body, timeout=LIMIT)
    assert all(isinstance(answer, ValueError) and said in str(answer) for answer in found)


@pytest.mark.parametrize("line", ["x" * 2**16, "answer 1 unsupported\n"], ids=["one-line", "many-lines"])
def test_an_answer_without_an_end(tmp_path, line):
    """The program is ended before its time, and nothing of it is read."""
    body = f"""
    with answer.open("w") as file:
        while file.tell() < 2**27:
            file.write({line!r} * 64)
            file.flush()
    time.sleep(600)
    """
    with memory(2**24):
        found = answers(tmp_path, body, timeout=LIMIT)
    assert all(isinstance(answer, ValueError) and "more than" in str(answer) for answer in found)


def test_of_stderr_the_end_is_kept(tmp_path):
    body = """
    for _ in range(64):
        sys.stderr.write("x" * 2**20)
    sys.exit("out of \\x1b[31mmemory")
    """
    with memory(2**24):
        found = answers(tmp_path, body, timeout=LIMIT)
    assert str(found[0]).startswith("ended with status 1: xxx")
    assert str(found[0]).endswith(r"out of \x1b[31mmemory")
    assert len(str(found[0])) < 1000


@pytest.mark.parametrize("group", ["its", "another"])
def test_the_end_of_the_program_is_waited_for_and_no_other(tmp_path, group):
    """What it started may hold stderr open; it is ended too, unless it has left the group."""
    file = tmp_path / "started"
    body = f"""
    import subprocess
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session={group == "another"})
    pathlib.Path({str(file)!r}).write_text(str(child.pid))
    """
    started = time.monotonic()
    try:
        found = answers(tmp_path, textwrap.dedent(body) + UNSUPPORTED, timeout=LIMIT)
        assert time.monotonic() - started < LIMIT / 2
        assert [answer.verdict for answer in found] == ["unsupported"] * len(QUESTIONS)
        assert group == "another" or ended(int(file.read_text()))
    finally:
        with suppress(OSError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def test_a_program_without_stderr_is_waited_for():
    """By looking at it now and then, not all the time."""
    looks: list[None] = []
    command = [sys.executable, "-c", "import os, time; os.close(2); time.sleep(1)"]
    assert run_supervised(command, LIMIT, lambda: looks.append(None)) == (0, "")
    assert len(looks) < 200


def test_what_was_answered_in_time_counts(tmp_path):
    program = tmp_path / "slow"
    program.write_text('#!/bin/sh\nprintf "magma-answer 1\\nanswer 1 unsupported\\nend\\n" > "$2"\nexec sleep 600\n')
    program.chmod(0o700)
    first, *others = Program([str(program)], "slow", timeout=2.0).ask(QUESTIONS)
    assert first.verdict == "unsupported"
    assert str(others[0]) == "not done after 2 s, which is all that one run may take"
    assert all(isinstance(answer, TimeoutError) for answer in others)


def test_reasons_do_not_reach_the_terminal_as_they_are(tmp_path):
    (answer, *_) = answers(tmp_path, UNSUPPORTED.replace("so far", "\\x1b]0;title" + "z" * 10_000))
    assert answer.text.startswith(r"\x1b]0;titlezzz")
    assert len(answer.text) < 1000


def large(axes: tuple[int, ...] | None) -> list[Question]:
    """Two steps that keep every array."""
    values = np.ones(2**16, np.float32)
    task = Task(
        key="large",
        params={"w": values},
        gradients=[{"w": values}] * 2,
        learning_rates=[0.1] * 2,
        base=base_to_plain(AdamW()),
        rule=rule_to_plain(magma()),
        block_axes={"w": axes},
        seed=1,
    )
    return [Question("steps", describe_task(task))]


def parts() -> dict[str, list[Question]]:
    """Large parts of a step."""
    n = 2**17
    ones, tau, ema = np.ones(n, np.float32), np.float64(2), np.float64(0.9)
    coins = {
        "name": np.uint8([119]),
        "seed": np.uint64(1),
        "step": np.uint32(1),
        "block": np.arange(n, dtype=np.uint32),
    }
    inputs = {
        "coins": coins | {"p": np.float64(0.5)},
        "sums": {"mu": ones, "gradient": ones},
        "score": {"sums": np.ones((3, n), np.int64), "tau": tau, "ema": ema, "score": ones},
    }
    return {
        kind: [Question(kind, {name: to_json(np.asarray(array)) for name, array in arrays.items()})]
        for kind, arrays in inputs.items()
    }


LARGE = {"unmasked": large(None), "one block": large(()), "blocks": large((0,)), **parts()}


@pytest.mark.parametrize("name", LARGE)
def test_right_answers_have_half_the_bytes_that_they_may(name, port, tmp_path):
    request, answer = tmp_path / "request", tmp_path / "answer"
    request.write_text(write_request(LARGE[name]))
    subprocess.run([port, str(request), str(answer)], check=True)
    size, most = answer.stat().st_size, most_bytes(LARGE[name])
    assert 2 * size < most - 2**20 < 6 * size


def asked() -> list[list[Question]]:
    """The requests of a run: the vectors of each file, and a case each."""
    vectors = [[Question(v.kind, v.input) for v in load() if v.file == file] for file in FILES]
    return vectors + [[Question("steps", describe_task(case.task()))] for case in pairwise()]


def test_what_an_answer_may_have_is_not_much():
    assert max(map(most_bytes, asked())) < 2**30


def test_extents_that_must_be_refused_are_not_counted():
    array = {"dtype": "float32", "shape": [2**40, 2**40], "bits": "00000000"}
    parameter = {"name": "w", "block_axes": [0, 2, -1], "param": array}
    steps = Question("steps", {"parameters": [parameter], "steps": [{}]})
    assert most_bytes([steps, Question("score", {"score": array})]) < 2**28


def test_a_file_that_grows_is_read_to_its_limit():
    """As those of the kernel, whose size is said to be 0."""
    file = Path("/proc/self/status")
    if not file.exists():
        pytest.skip("there is no /proc on this system")
    with pytest.raises(ValueError, match="line 1: must be 'magma-answer 1', got 'Name'"):
        read_answer_file(file, 4)


def test_reading_costs_little_more_than_what_was_answered(tmp_path):
    """One line is held at a time: of 32 MB no copy."""
    file, line = tmp_path / "answer", f"words uint32 1 {2**14} {' '.join(['00000000'] * 2**14)}\n"
    file.write_text("magma-answer 1\n" + "".join(f"answer {n} given\n{line}end\n" for n in range(200)))
    size = file.stat().st_size
    with memory(size + size // 4):
        found = read_answer_file(file, size)
    assert len(found) == 200
