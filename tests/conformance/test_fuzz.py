"""Random cases: their coverage, their reproducibility, and a planted fault that they must find."""

import json
import math
import shlex
import sys
from collections import Counter
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from magma_conformance.bits import assert_bits_equal
from magma_conformance.cli import app
from magma_conformance.fuzz.case import FuzzCase, configuration
from magma_conformance.fuzz.draw_numbers import is_single
from magma_conformance.fuzz.hunt import MOST_DIFFERENT, Row, Tally, configurations, hunt
from magma_conformance.fuzz.independent import Oracle
from magma_conformance.fuzz.minimise import minimise
from magma_conformance.fuzz.numbers_as_inputs import numbers_as_inputs
from magma_conformance.fuzz.stream import Stream
from magma_conformance.implementations.core import check_task
from magma_conformance.runner.jobs import open_implementation, open_mode
from magma_conformance.runner.repeat import repeat
from magma_conformance.runner.repro import Repro, write_repro
from magma_conformance.runner.result import compare
from magma_conformance.task import Record, Task
from magma_conformance.wire.digest import digest_task
from typer.testing import CliRunner

NUMPY = open_implementation("numpy", "eager", "cpu")
ONE = 5
"""A configuration of one small parameter."""
CASES = [FuzzCase(0, number, 0) for number in range(400)]


class OneUlp:
    """The reference, but for ν above 1 of RMSProp, which is an ulp too large: as a contraction makes it."""

    name = "one ulp"

    def refuses(self, task: Task) -> str | None:
        return None

    def run(self, task: Task) -> list[Record]:
        records = NUMPY.run(task)
        if task.base["kind"] == "rmsprop":
            for record in records:
                for key, x in record.items():
                    if key.endswith("/nu"):
                        record[key] = np.where((x > 1) & np.isfinite(x), np.nextafter(x, np.float32(np.inf)), x)
        return records


def tally_of(
    candidate: Any, most: int | None, *, reference: Any = NUMPY, end: float = math.inf, **changes: Any
) -> Tally:
    row = Row("planted", "fault", lambda: candidate, **changes)
    *_, last = hunt(row, candidate, reference, configurations(row, seed=0, most=most), end=end)
    return last


def test_words_are_pinned():
    """Those of Philox, which NumPy promises never to change."""
    assert Stream("a").words(2).tolist() == [3032838489708147381, 5340701529479776103]


@pytest.mark.parametrize(
    ("case", "digest"),
    [
        (FuzzCase(0, 0, 0), "4d70479a4e1415201a3ee08daae8b0652722067e0d2663f5e25d52c230d3f0bf"),
        (FuzzCase(1, 2, 3), "e36b224778760f75ec54a75f160f02d550e9ec10c5f04dac1ca7b7f83aef0b2c"),
        (FuzzCase(5, 11, 0), "c64bd1f0426e5804d4cca837b861041dc94b7e891e590fced160e505dbcde511"),
        (FuzzCase(2**64, 7, 1, vary=True), "065f1decb24189ebc43e267e82b944b3b3c4b2da0cf5226916d2dd62495cb140"),
    ],
)
def test_cases_are_the_same_on_every_machine(case, digest):
    assert digest_task(case.task()) == digest


def test_cases_are_legal():
    """Spec section 9 refuses none of them."""
    for case in CASES:
        check_task(case.task())


def test_cases_cover_the_ranges():
    seen = Counter[str]()
    for number in range(2000):
        made = configuration(0, number)
        seen[f"base {made.base['kind']}"] += 1
        seen[f"rule {made.rule['survival']} {made.rule['weight']} {made.rule['momentum']} {made.rule['decay']}"] += 1
        seen[f"parameters {len(made.parameters)}"] += 1
        seen[f"steps {made.steps}"] += 1
        seen["1 - beta2 rounds to 1"] += 0 < made.base.get("beta2", 1) < 2.0**-25
        seen["beta2 is flushed"] += 0 < made.base.get("beta2", 1) < 2.0**-100
        seen["nesterov"] += bool(made.base.get("nesterov"))
        for what, x in [*made.base.items(), *made.rule.items()]:
            if isinstance(x, float):
                seen[f"{what} special"] += x in (0.0, 1.0, 0.5)
                seen[f"{what} no binary32"] += not is_single(x)
        seen["seed above 2^63"] += made.seed >= 2**63
        for name, one in made.parameters.items():
            seen[f"format {one.format}"] += 1
            seen[f"rank {len(one.shape)}"] += 1
            seen["not masked"] += one.axes is None
            seen["elements are blocks"] += one.axes is not None and len(one.axes) == len(one.shape) > 1
            seen["axes out of order"] += one.axes is not None and list(one.axes) != sorted(one.axes)
            seen["no elements"] += 0 in one.shape
            seen["many elements"] += int(np.prod(one.shape)) > 30_000
            seen["empty name"] += not name
            seen["very long name"] += len(name) > 1000
            seen["no ASCII"] += any(ord(letter) > 2**16 for letter in name)
    never = [what for what, count in seen.items() if not count]
    assert not never
    assert len([what for what in seen if what.startswith("rule")]) == 2 * 3 * 2 * 2
    assert {f"rank {rank}" for rank in range(5)} | {f"steps {steps}" for steps in range(2, 7)} <= seen.keys()


def test_values_cover_the_ranges():
    seen = Counter[str]()
    for case in CASES:
        task = case.task()
        seen["last step"] += task.first_step + len(task.gradients) > 2**32 - 3
        seen["first step"] += task.first_step == 1
        seen["state"] += task.state is not None
        seen["no state"] += task.state is None
        seen["no rate"] += 0.0 in task.learning_rates
        for x in (x for step in task.gradients for x in step.values()):
            with np.errstate(invalid="ignore"):
                size = abs(x.astype(np.float32))
                bits = x.view(f"u{x.dtype.itemsize}")
            seen["NaN"] += bool(np.isnan(size).any())
            seen["NaNs of several kinds"] += len(set(bits[np.isnan(size)].tolist())) > 1
            seen["infinity"] += bool(np.isinf(size).any())
            seen["subnormal"] += bool(((size > 0) & (size < 2.0**-126)).any())
            seen["negative zero"] += bool(((size == 0) & np.signbit(x.astype(np.float32))).any())
            seen["huge"] += bool(((size > 2.0**100) & np.isfinite(size)).any())
            seen["one-hot"] += x.size > 3 and int((size != 0).sum()) == 1
            seen["constant"] += x.size > 3 and bool((size == size.flat[0]).all()) and size.flat[0] > 0
    assert not [what for what, count in seen.items() if not count]


def test_core_agrees_with_the_oracle():
    """Two implementations that share no code."""
    oracle = Oracle()
    ran = 0
    for case in CASES[:60]:
        task = case.task()
        if oracle.refuses(task):
            continue
        mismatch = compare(oracle.run(task), NUMPY.run(task), task.first_step)
        assert mismatch is None, f"{case.id}: {mismatch}"
        ran += 1
    assert ran > 40


def test_hyper_parameters_as_inputs():
    """One program, other numbers each time; and the numbers do matter."""
    candidate = numbers_as_inputs(open_mode("jax", "jit", "cpu"))
    bases: list[Any] = []
    programs: list[Any] = []
    for values in range(4):
        task = FuzzCase(0, ONE, values, vary=True).task()
        expected = NUMPY.run(task)
        assert compare(candidate.run(task), expected, task.first_step) is None
        bases.append(task.base)
        programs.append(candidate._compiled[1])
    assert len({json.dumps(base) for base in bases}) == 4
    assert all(program is programs[0] for program in programs)
    assert programs[0]._cache_size() <= 2  # states that `init` made are committed to no device, those given are


def test_numbers_that_are_no_binary32_are_no_inputs():
    candidate = numbers_as_inputs(open_mode("jax", "jit", "cpu"))
    task = FuzzCase(0, ONE, 0, vary=True).task()
    assert candidate.refuses(task) is None
    assert candidate.refuses(replace(task, rule={**task.rule, "p": 0.1})) == "hyper-parameters are not binary32 numbers"


def test_a_fault_is_found():
    tally = tally_of(OneUlp(), 300)
    assert len(tally.different) == MOST_DIFFERENT
    assert {case.column for case, _ in tally.different} == {"rmsprop"}
    assert all(result.mismatch.array.endswith("/nu") for _, result in tally.different)


def test_a_failure_is_found():
    class Broken(OneUlp):
        def run(self, task):
            raise RuntimeError("out of order")

    tally = tally_of(Broken(), 10)
    assert {result.status for _, result in tally.different} == {"failed"}
    assert len(tally.different) == MOST_DIFFERENT


def test_what_agrees_is_counted():
    tally = tally_of(NUMPY, 6, values=3)
    assert (tally.configurations, tally.cases, tally.equal, tally.different) == (6, 18, 18, [])


def test_what_is_refused_is_counted():
    class Refusing(OneUlp):
        def refuses(self, task):
            return "too hot"

    tally = tally_of(Refusing(), 4)
    assert (tally.configurations, tally.cases, tally.not_run) == (0, 0, {"too hot": 4})
    assert tally_of(Refusing(), None, end=0.0).cases == 0  # what refuses everything is given up when time is over


def test_one_configuration_is_run_whole_though_time_is_over():
    tally = tally_of(NUMPY, None, end=0.0, values=3)
    assert (tally.configurations, tally.equal) == (1, 3)


def test_a_reference_that_fails_is_a_failure():
    class Broken(OneUlp):
        name = "reference"

        def run(self, task):
            raise KeyError("out of order")

    tally = tally_of(NUMPY, 10, reference=Broken())
    assert {result.status for _, result in tally.different} == {"failed"}
    assert tally.configurations == MOST_DIFFERENT


def test_a_failing_task_is_made_small():
    """One parameter, one step, one element."""
    candidate = OneUlp()

    def fails(task: Task) -> bool:
        return compare(candidate.run(task), NUMPY.run(task), task.first_step) is not None

    case = next(case for case, _ in tally_of(candidate, 300).different if len(case.task().params) > 1)
    small = minimise(case.task(), fails, NUMPY.run)
    assert fails(small)
    assert list(small.params) in (["w0"], ["w1"], ["w2"])
    assert [x.size for x in small.params.values()] == [1]
    assert len(small.gradients) == 1
    assert small.rule["p"] == 0.5
    assert small.seed == 0


def test_a_repro_is_the_task(tmp_path):
    for case in CASES[:20]:
        task = case.task()
        write_repro(tmp_path / "case.json", task, "nothing")
        again = Repro(tmp_path / "case.json").task()
        assert digest_task(again) == digest_task(task)
        for name, x in task.params.items():
            assert_bits_equal(again.params[name], x)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": "magma-conformance repro 1"}', "\x00"])
def test_what_is_no_repro_is_refused(tmp_path, text):
    (tmp_path / "case.json").write_text(text)
    with pytest.raises(ValueError, match=r"case\.json is no repro file"):
        Repro(tmp_path / "case.json").task()


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


PLANTED = ("--impl", "fuzz_planted:one_ulp")


@pytest.fixture
def planted(monkeypatch):
    """A module with the fault, as ``--impl`` takes it."""
    module = ModuleType("fuzz_planted")
    module.one_ulp = OneUlp
    monkeypatch.setitem(sys.modules, "fuzz_planted", module)


def test_command_finds_a_fault_and_run_repeats_it(planted, tmp_path):
    found = command(
        "fuzz", *PLANTED, "--configurations", "60", "--out", str(tmp_path), "--json", str(tmp_path / "r.json")
    )
    assert found.exit_code == 1
    (file,) = tmp_path.glob("fuzz-*.json")
    assert f"magma-conformance run --impl fuzz_planted:one_ulp --repro {file}" in found.stdout
    assert command("run", "--repro", str(file), *PLANTED, "--jobs", "1").exit_code == 1
    assert command("run", "--repro", str(file), "--backend", "numpy", "--jobs", "1").exit_code == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["configurations"] > 0
    assert len(row["different"]) == MOST_DIFFERENT


def test_command_says_how_to_repeat_what_run_cannot(planted, tmp_path):
    """Another reference: the line is one of `fuzz`, and finds the same."""
    arguments = ["fuzz", *PLANTED, "--reference", "oracle", "--configurations", "60", "--out", str(tmp_path)]
    found = command(*arguments)
    (line,) = [line.strip() for line in found.stdout.splitlines() if "magma-conformance fuzz" in line]
    again = command(*shlex.split(line)[1:])
    assert (found.exit_code, again.exit_code) == (1, 1)
    assert "/nu: " in again.stdout


def test_run_says_how_to_repeat_what_differs(planted):
    """A line for a shell, which finds the same difference."""
    found = command("run", *PLANTED, "--case", "rmsprop/*", "--jobs", "1")
    (line, *_) = [line.strip() for line in found.stdout.splitlines() if "magma-conformance run" in line]
    again = command(*shlex.split(line)[1:], "--jobs", "1")
    assert (found.exit_code, again.exit_code) == (1, 1)
    assert "/nu: " in again.stdout
    assert line in again.stdout


@pytest.mark.parametrize("name", ["a b", "it's", "κ"])
def test_repeat_is_one_line_for_a_shell(name):
    words = shlex.split(repeat(f"exec ./port {name}", "--repro", f"{name}.json"))
    assert words[2:] == ["--exec", f"./port {name}", "--repro", f"{name}.json"]


def test_command_counts(tmp_path):
    arguments = ["--backend", "oracle", "--configurations", "5", "--reference", "numpy", "--seed", "7"]
    done = command("fuzz", *arguments, "--json", str(tmp_path / "r.json"))
    assert done.exit_code == 0, done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["seed"], report["reference"]) == (7, "numpy eager")
    (row,) = report["rows"]
    assert row["equal"] + sum(row["not_run"].values()) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "abacus"], "--backend: there is no 'abacus'"),
        (["--mode", "wet"], "--mode: there is no 'wet'"),
        (["--backend", "oracle", "--mode", "jit"], "--mode: no mode"),
        (["--reference", "faith"], "--reference: must be one of numpy, c, oracle"),
        (["--exec", "no-such-program-here"], "--exec: no program"),
        (["--backend", "oracle", "--device", "cuda"], "--device: nothing of what was asked for runs on cuda"),
        (["--backend", "magma_torch", "--mode", "graph"], "graphs are CUDA's"),
        (["--repro", "no-such-file.json"], "--repro: "),
    ],
)
def test_command_refuses(arguments, said):
    done = command("fuzz", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_run_refuses_what_is_no_repro(tmp_path):
    done = command("run", "--repro", str(tmp_path / "none.json"), "--backend", "numpy")
    assert done.exit_code == 2
    assert "--repro" in done.stderr
