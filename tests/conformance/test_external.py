"""External implementations: a factory in Python, a program, and the C port as one."""

import json
import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from c_port import QUESTIONS, UNSUPPORTED, answers, command, ended, script
from hypothesis import given
from hypothesis import strategies as st
from magma_conformance.cases.pairwise import pairwise
from magma_conformance.external.plugin import open_plugged
from magma_conformance.external.program import Program
from magma_conformance.report.report import SHOWN
from magma_conformance.runner.jobs import run_case
from magma_conformance.runner.judge_vectors import judge_vectors
from magma_conformance.vectors import load
from magma_conformance.wire.request_text import Question, read_answers, write_request

# The port in C


def test_the_port_gives_every_vector(port, tmp_path):
    file = tmp_path / "report.json"
    result = command("run", "--exec", port, "--case", "vectors/*", "--jobs", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert report["counts"] == {"equal": len(load())}  # nothing is left out, not even what mappings cannot say


@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_the_port_gives_the_vectors_at_every_level(build, level):
    result = command("run", "--exec", build(level, "-ffp-contract=off"), "--case", "vectors/*", "--jobs", "1")
    assert result.exit_code == 0, result.output


def test_the_port_gives_every_case_and_the_real_gradients(port):
    pytest.importorskip("torch", reason="torch is not installed")
    result = command("run", "--exec", port, "--steps", "12", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert "2/2" in result.output  # the text, and what was recorded of it


def test_the_port_fails_with_contraction(build, tmp_path):
    """And the report says that it is contraction."""
    options = ["-mfma"] if platform.machine() in ("x86_64", "AMD64") else []
    processor = Path("/proc/cpuinfo")
    if options and processor.exists() and "fma" not in processor.read_text(encoding="utf-8").split():
        pytest.skip("this processor has no fused multiply-add")
    program, file = build("-O2", "-ffp-contract=fast", *options), tmp_path / "report.json"
    result = command("run", "--exec", program, "--case", "vectors/*", "--jobs", "1", "--json", str(file))
    assert result.exit_code == 1
    first = result.output.partition("what its failed vectors have in common\n")[2].splitlines()[0]
    assert re.match(r" +Contraction \(in (\d+) of \1 failed vectors; it changes \d+\): A product and", first)
    failed = [entry for entry in json.loads(file.read_text())["results"] if entry["status"] != "equal"]
    assert len(failed) > 20
    assert all("Contraction" in entry["flags"] for entry in failed)
    assert all(entry["mismatch"]["difference"]["ulp"] != 0 for entry in failed)


@pytest.mark.parametrize(
    "text", ["", "magma-request 2", "magma-request 1 question", "magma-request 1 question 1 steps"]
)
def test_the_port_does_not_take_what_is_no_request(port, tmp_path, text):
    request, answer = tmp_path / "request", tmp_path / "answer"
    request.write_text(text)
    done = subprocess.run([port, str(request), str(answer)], capture_output=True, timeout=60, check=False)
    assert done.returncode > 0  # by itself, not by a signal
    assert done.stderr


# Programs


def test_a_program_that_supports_nothing(tmp_path):
    found = answers(tmp_path, UNSUPPORTED)
    assert [answer.verdict for answer in found] == ["unsupported"] * 5
    assert found[0].text == "so far"


def test_a_program_that_dies_is_asked_for_the_rest(tmp_path):
    """The question that it died of is lost, and no other."""
    body = """
    text = request.read_text().splitlines()
    numbers = [int(line.split()[1]) for line in text if line.startswith("question")]
    with answer.open("w") as file:
        print("magma-answer 1", file=file)
        for n in numbers:
            if len(numbers) - n == 2:  # the third from the end, in whichever request
                print(f"answer {n} unsupported", file=file, flush=True)
                sys.exit("out of memory")
            print(f"answer {n} unsupported\\nend", file=file, flush=True)
    """
    found = answers(tmp_path, body)
    assert [isinstance(answer, Exception) for answer in found] == [False, False, True, False, False]
    assert "status 1: out of memory" in str(found[2])


def test_a_program_that_does_not_end(tmp_path):
    """It is ended, with what it has started, and not asked again."""
    file = tmp_path / "started"
    body = f"""
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open({str(file)!r}, "a") as started:
        print(child.pid, file=started)
    print("at question 1", file=sys.stderr, flush=True)
    time.sleep(60)
    """
    found = answers(tmp_path, body, timeout=3.0)
    assert all(isinstance(answer, TimeoutError) for answer in found)
    assert [str(answer) for answer in found] == [
        "not done after 3 s, which is all that one run may take: at question 1",
        *["not asked: the run before took too long"] * 4,
    ]
    (child,) = map(int, file.read_text().split())
    assert ended(child)


def test_a_line_that_is_wrong_costs_its_question_only(tmp_path):
    body = """
    numbers = [int(line.split()[1]) for line in request.read_text().splitlines() if line.startswith("question")]
    with answer.open("w") as file:
        print("magma-answer 1", file=file)
        for n in numbers:
            odd = "nonsense\\n" if len(numbers) - n == 2 else ""
            print(f"{odd}answer {n} unsupported so\\u2028far\\nend", file=file)
    """
    found = answers(tmp_path, body)
    assert [isinstance(answer, Exception) for answer in found] == [False, False, True, False, False]
    assert "must be 'answer NUMBER given'" in str(found[2])
    assert found[0].text == r"so\u2028far"


def test_blanks_between_words_do_not_matter(port, tmp_path):
    body = f"""
    import subprocess
    subprocess.run([{port!r}, str(request), str(answer)], check=True)
    text = answer.read_text().replace(" ", " \\t ").replace("\\n", " \\r\\n")
    answer.write_bytes(text.encode())
    """
    program = Program(script(tmp_path, textwrap.dedent(body)).split(), "program")
    assert {result.status for result in judge_vectors(program, load())} == {"equal"}


def test_numbers_of_numpy_are_written_like_others():
    inputs = json.loads(json.dumps(next(vector.input for vector in load() if vector.file == "sgd")))
    with_numpy = {**inputs, "steps": [{**step, "lr": np.float64(step["lr"])} for step in inputs["steps"]]}
    assert write_request([Question("steps", with_numpy)]) == write_request([Question("steps", inputs)])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "wrote no answer file"),
        ("answer.write_text('')", "line 1: must be 'magma-answer 1'"),
        ("answer.write_text('magma-answer 1\\n')", "no answer, though the program ended with status 0"),
        ("answer.write_text('magma-answer 1\\nanswer one given\\nend\\n')", "line 2: must be 'answer NUMBER given'"),
        ("answer.write_bytes(bytes(range(256)))", "line 1"),
    ],
)
def test_a_program_that_writes_no_answers(tmp_path, body, said):
    found = answers(tmp_path, body)
    assert all(isinstance(answer, Exception) for answer in found)
    assert said in str(found[0])


def test_a_program_that_never_answers_is_not_started_for_every_question(tmp_path):
    file = tmp_path / "starts"
    body = f"open({str(file)!r}, 'a').write('x')\nsys.exit('no such port')"
    results = list(judge_vectors(Program(script(tmp_path, body).split(), "program"), load()))
    assert len(results) == len(load())
    assert {result.reason for result in results} == {"ended with status 1: no such port"}
    assert file.read_text() == "xxx"


def test_failures_that_are_alike_are_shown_once(tmp_path):
    program = script(tmp_path, "sys.exit('no such port')")
    result = command("run", "--exec", program, "--case", "vectors/*", "--jobs", "1")
    assert result.exit_code == 1
    assert result.output.count("no such port") == 1
    assert f": {len(load()) - SHOWN} more; --json" in result.output


def test_what_a_program_says_of_a_task(tmp_path, port):
    (case,) = [case for case in pairwise() if case.id == pairwise()[0].id]
    assert run_case(Program([port], "port"), case).status == "equal"
    unsupported = Program(script(tmp_path, UNSUPPORTED).split(), "program")
    result = run_case(unsupported, case)
    assert result.status == "not run"
    assert result.reason == "so far"
    refusing = Program(script(tmp_path, UNSUPPORTED.replace("unsupported", "refused")).split(), "program")
    assert run_case(refusing, case).status == "failed"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("answer 1 given\nwords uint32 x 1 00000000\nend", "line 3: the rank must be an integer"),
        ("answer 1 given\nwords uint32 2 1\nend", "line 3: there must be 2 extents"),
        ("answer 1 given\nwords uint32 1 1 0\nwords uint32 1 1 0\nend", "line 4: 'words' is there twice"),
        ("answer 1 given\nwords\nend", "line 3: must be an array"),
        ("answer 1 given\nparameter\nend", "line 3: must be an array"),
        ("answer 1 given\nend\nanswer 1 given\nend", "line 4: question 1 is answered twice"),
        ("answer 1 perhaps\nend", "line 2: must be 'answer NUMBER given'"),
        (f"answer {'1' * 5000} given\nend", "line 2: must be 'answer NUMBER given'"),
        (f"answer 1 given\nwords uint32 {'1' * 5000} 1\nend", "line 3: the rank must be an integer"),
        (f"answer 1 given\nwords uint32 1 {2**63} 1\nend", "line 3: there must be 1 extents"),
    ],
)
def test_answers_of_another_form(body, said):
    with pytest.raises(ValueError, match=said):
        read_answers(f"magma-answer 1\n{body}\n".split("\n"))


@given(st.text(alphabet="magmaswer 1\nendgivstpuint320f-", max_size=200))
def test_answers_are_read_or_refused(text):
    for whole in (text, f"magma-answer 1\n{text}", f"magma-answer 1\nanswer 1 given\n{text}\nend\n"):
        try:
            read_answers(whole.split("\n"))
        except ValueError as error:
            assert "line " in str(error)  # noqa: PT017  # that it may also be read is the point


# Python


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory, as somebody would have it."""
    (tmp_path / "someone.py").write_text(
        textwrap.dedent(
            '''
            """An implementation of somebody else's, and some that are none."""
            import numpy as np
            from magma_conformance.runner.jobs import open_implementation


            class Mine:
                name = "mine"

                def refuses(self, task):
                    return "no scalars" if any(x.ndim == 0 for x in task.params.values()) else None

                def run(self, task):
                    return open_implementation("numpy", "eager", "cpu").run(task)


            class Wrong(Mine):
                def run(self, task):
                    records = super().run(task)
                    for record in records:
                        for name, x in record.items():
                            if name.endswith("/param") and x.size:
                                record[name] = np.nextafter(x, x.dtype.type(np.inf), dtype=x.dtype)
                    return records


            class Parts(Mine):
                def part(self, kind, inputs):
                    if kind == "score":
                        raise NotImplementedError("no scores yet")
                    return open_implementation("numpy", "eager", "cpu").part(kind, inputs)


            class Short(Mine):
                def run(self, task):
                    return super().run(task)[:1]


            class Nothing:
                name = "nothing"
            '''
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "someone", raising=False)
    yield "someone"
    sys.modules.pop("someone", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_an_implementation_in_python(module):
    result = command("run", "--impl", f"{module}:Mine", "--case", "vectors/*", "--case", "sgd/*", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert f"impl {module}:Mine" in result.output
    assert "cases not run: no parts of a step" in result.output
    assert "cases not run: no scalars" in result.output


def test_an_implementation_in_python_that_is_an_ulp_off(module):
    case = "vectors/adamw/*"
    result = command("run", "--impl", f"{module}:Wrong", "--case", case, "--jobs", "1")
    assert result.exit_code == 1
    assert "(1 ulp)" in result.output


@pytest.mark.parametrize("case", ["text", "vectors/trajectories/*", "sgd/*"])
def test_an_implementation_that_leaves_out_steps(module, case):
    pytest.importorskip("torch", reason="torch is not installed")
    result = command("run", "--impl", f"{module}:Short", "--case", case, "--steps", "3", "--jobs", "1")
    assert result.exit_code == 1
    assert "1 records for" in result.output


def test_an_implementation_with_some_parts(module):
    result = command("run", "--impl", f"{module}:Parts", "--case", "vectors/*", "--jobs", "1")
    assert result.exit_code == 0, result.output
    scores = sum(vector.kind == "score" for vector in load())
    assert f"{scores} cases not run: no scores yet" in result.output


def test_an_implementation_beside_a_backend(module):
    result = command(
        *("run", "--impl", f"{module}:Mine", "--backend", "numpy", "--case", "adam/dense/*", "--jobs", "1")
    )
    assert result.exit_code == 0, result.output
    assert "numpy eager" in result.output
    assert "strict eager" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--impl", "someone"], "must be pkg.mod:factory, got 'someone'"),
        (["--impl", "nobody:Mine"], "No module named 'nobody'"),
        (["--impl", "someone:Yours"], "someone has no Yours"),
        (["--impl", "someone:Nothing"], "has no refuses"),
        (["--exec", "./no-such-port"], "no program './no-such-port' that can be executed: give its path"),
        (["--exec", "someone.py"], "chmod +x someone.py"),
        (["--exec", "no-such-interpreter port.js"], "no program 'no-such-interpreter'"),
        (["--impl", "someone:Mine", "--case", "vectors/threfry/*"], "did you mean 'vectors/threefry/*'?"),
        (["--exec", ""], "no program ''"),
        (["--exec", "./port 'x"], "is no command line"),
        (["--impl", ".someone:Mine"], "relative import"),
        (["--impl", "someone:Mine", "--json", "someone.py/report.json"], "--json: "),
    ],
)
def test_what_cannot_be_plugged_in_exits_2(module, arguments, said):
    result = command("run", *arguments, "--jobs", "1")
    assert result.exit_code == 2
    assert said in result.output


def test_programs_may_have_arguments(tmp_path):
    program = open_plugged("exec", script(tmp_path, UNSUPPORTED))
    (answer, *_) = program.ask(QUESTIONS)
    assert answer.verdict == "unsupported"


def test_a_request_has_one_entry_for_each_question():
    lines = write_request(QUESTIONS).splitlines()
    assert lines[0] == "magma-request 1"
    assert [line for line in lines if line.startswith("question")] == [f"question {n} threefry" for n in range(1, 6)]
    assert lines.count("end") == 5
