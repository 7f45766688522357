"""The vectors: every backend gives their answers, the generator reproduces them, and lint finds their mistakes."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest
from magma_conformance.report.suspects import suspects
from magma_conformance.runner.jobs import open_implementation, run_case
from magma_conformance.runner.judge_vectors import judge_vectors
from magma_conformance.vectors import FILES, FOLDER, load
from magma_conformance.vectors.generator.answers import answer
from magma_conformance.vectors.generator.hazards import HAZARDS, planted
from magma_conformance.vectors.generator.lint import lint
from magma_conformance.vectors.generator.write import write
from magma_conformance.versions import VECTORS_VERSION
from magma_conformance.wire.hex_arrays import from_bits, to_bits, to_json
from magma_conformance.wire.request_text import Answer, Question
from magma_conformance.wire.task_json import describe_records, describe_task, records_from, task_from

VECTORS = load()
ONLY_LISTS = "a mapping cannot have one name twice"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "tensorflow", "jax"])
def test_every_backend_gives_the_vectors(backend, file):
    if backend == "tensorflow":  # the two live in one process only if torch comes first
        pytest.importorskip("torch", reason="torch is not installed")
    try:
        candidate = open_implementation(backend, "eager", "cpu")
    except ImportError as error:
        pytest.skip(str(error))
    # JAX compiles each operation for each shape, also when it is eager: every tenth
    vectors = [v for v in VECTORS if v.file == file and (backend != "jax" or v.id % 10 == 1)]
    results = list(judge_vectors(candidate, vectors))
    assert len(results) == len(vectors) > 0
    wrong = [result for result in results if result.status not in ("equal", "not run")]
    assert not wrong, wrong[0]
    reasons = {result.reason for result in results if result.status == "not run"}
    allowed = {ONLY_LISTS} | ({"no bfloat16", "no float16"} if backend == "strict" else set())
    assert reasons <= allowed
    assert any(result.status == "equal" for result in results)


def test_the_generator_writes_the_same_bytes(tmp_path):
    write(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    here = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in (".json", ".txt")}
    assert written == here, "run: magma-conformance vectors --write conformance/magma_conformance/vectors"


def test_vectors_have_no_mistakes():
    count, mistakes = lint(FOLDER)
    assert not mistakes
    assert count == len(VECTORS) > 300


class Oracle:
    """The oracle as a program, with a hazard planted in it."""

    name = "oracle"

    def __init__(self, patch):
        self._patch = patch

    def refuses(self, task):
        return None

    def run(self, task):
        raise NotImplementedError

    def ask(self, questions: Sequence[Question]):
        with planted(self._patch):
            return [self._answer(question) for question in questions]

    def _answer(self, question):
        try:
            return Answer("given", "", answer(question.kind, question.inputs))
        except (OverflowError, ValueError) as error:
            return error


@pytest.mark.parametrize("flag", HAZARDS)
def test_a_port_with_one_hazard_fails_just_the_vectors_with_its_flag(flag):
    """And the report names the hazard."""
    vectors = [vector for vector in VECTORS if vector.file not in ("errors", "threefry")]
    failed = set()
    for patch in HAZARDS[flag].patches:
        results = list(judge_vectors(Oracle(patch), vectors))
        failed |= {result.case for result in results if result.status != "equal"}
        found = [suspect.flag for suspect in suspects(map(asdict, results))]
        # each of the two ways of contracting changes a part of what either does, and other hazards may look like it
        assert flag in found[: len(HAZARDS[flag].patches)]
    assert failed == {vector.name for vector in vectors if flag in vector.flags} != set()


def test_without_a_hazard_nothing_fails():
    results = list(judge_vectors(Oracle({}), [vector for vector in VECTORS if vector.file != "errors"]))
    assert {result.status for result in results} == {"equal"}
    assert suspects(map(asdict, results)) == []


def test_what_has_no_value_has_no_suspects():
    """A program that crashes, leaves out arrays or gives others says nothing about its arithmetic."""
    vectors = [vector for vector in VECTORS if vector.file == "adamw"]

    class Broken(Oracle):
        def ask(self, questions):
            answers = super().ask(questions)
            for i, one in enumerate(answers):
                if i % 3 == 0:
                    answers[i] = RuntimeError("boom")
                elif i % 3 == 1:
                    del one.given["steps"][0][0]["param"]
                else:
                    one.given["steps"][0][0]["param"]["dtype"] = "float64"
                    one.given["steps"][0][0]["param"]["bits"] = "0000000000000000"
                    one.given["steps"][0][0]["param"]["shape"] = []
            return answers

    results = list(judge_vectors(Broken({}), vectors))
    assert {result.status for result in results} == {"failed", "different"}
    assert suspects(map(asdict, results)) == []


@pytest.mark.parametrize(
    ("patch", "flag"),
    [
        ({"mul": lambda x, y: x * y}, "ExcessPrecision"),
        ({"add": lambda x, y: x + y}, "ExcessPrecision"),
        ({"rint": lambda x: math.floor(x + 0.5), "threshold": lambda p: math.floor(p * 2**24 + 0.5)}, "RoundingTie"),
    ],
)
def test_a_mistake_that_is_much_like_a_hazard(patch, flag):
    """What ports to languages without binary32 do first."""
    results = judge_vectors(Oracle(patch), [vector for vector in VECTORS if vector.file != "errors"])
    assert flag in [suspect.flag for suspect in suspects(map(asdict, results))]


def test_every_answer_is_looked_at():
    """A wrong word anywhere in an answer is found: each array of each kind of question, changed in one bit."""
    seen = set()
    for vector in VECTORS:
        for path in _arrays(vector.expected):
            what = vector.column, path[-1]
            if what in seen or vector.column == "errors":
                continue
            wrong = json.loads(json.dumps(vector.expected))
            array = _at(wrong, path)
            if not array["bits"]:
                continue
            seen.add(what)
            digit = "1" if array["bits"][-1] != "1" else "0"
            array["bits"] = array["bits"][:-1] + digit

            class Wrong(Oracle):
                def ask(self, questions, given=wrong):
                    return [Answer("given", "", given)]

            (result,) = judge_vectors(Wrong({}), [vector])
            assert result.status == "different", (vector.name, path)
            assert str(path[-1]) in result.reason
    assert {field for _, field in seen} == {
        *("words", "coins", "keep", "x", "y", "sums", "cosine", "sigmoid", "score", "param", "mu", "nu"),
        *("mu_power", "nu_power"),
    }


def _arrays(tree, path=()):
    if isinstance(tree, dict) and "bits" in tree:
        yield path
    elif isinstance(tree, dict | list):
        for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _arrays(part, (*path, key))


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda given: given["words"].update(dtype="int32"), "different", "dtype int32, expected uint32"),
        (lambda given: given["words"].update(shape=[2, 1]), "different", "shape (2, 1), expected (2,)"),
        (lambda given: given.update(more=given["words"]), "failed", "'more' is odd"),
        (lambda given: given.clear(), "failed", "'words' is odd"),
        (lambda given: given["words"].update(bits="6b200159"), "failed", "cannot be read"),
        (lambda given: given["words"].update(bits="6b200159 99ba4eg0"), "failed", "cannot be read"),
        (lambda given: given["words"].update(dtype="float8"), "failed", "cannot be read"),
        (lambda given: given["words"].update(bits=" 6b200159  99ba4efe\t"), "equal", ""),
    ],
)
def test_an_answer_of_another_form(change, status, said):
    given = json.loads(json.dumps(VECTORS[0].expected))
    change(given)

    class Wrong(Oracle):
        def ask(self, questions):
            return [Answer("given", "", given)]

    (result,) = judge_vectors(Wrong({}), VECTORS[:1])
    assert result.status == status
    assert said in result.reason


@pytest.mark.parametrize("verdict", ["given", "refused", "unsupported"])
def test_what_must_be_refused_and_what_must_not(verdict):
    error, right = (next(v for v in VECTORS if v.column == column) for column in ("errors", "steps"))

    class Says(Oracle):
        def ask(self, questions):
            return [Answer(verdict, "so", right.expected) for _ in questions]

    results = [result.status for result in judge_vectors(Says({}), [error, right])]
    assert (
        results
        == {
            "given": ["failed", "equal"],
            "refused": ["equal", "failed"],
            "unsupported": ["not run", "not run"],
        }[verdict]
    )


# The lint


@pytest.fixture
def folder(tmp_path):
    """A copy in which a file can be changed."""
    copy = tmp_path / "vectors"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return copy


def _change(document, what):
    tests = document["tests"]
    if what == "count":
        document["count"] += 1
    elif what == "version":
        document["version"] = 99
    elif what == "id":
        tests[3]["id"] = 3
    elif what == "note missing":
        document["notes"].pop("Contraction")
    elif what == "note stale":
        document["notes"]["Contraction"]["note"] = "something else"
    elif what == "note without vectors":
        document["notes"]["Utf8"] = {"section": "7.2", "note": HAZARDS["Utf8"].note}
    elif what == "flag unknown":
        tests[0]["flags"].append("Cosmic")
    elif what == "bits":
        array = tests[0]["input"]["parameters"][0]["param"]
        array["bits"] = array["bits"][:-1]
    elif what == "question twice":
        tests[1].update(input=tests[0]["input"], kind=tests[0]["kind"], expected=tests[0]["expected"])
    elif what == "unknown key":
        tests[0]["input"]["parameters"][0]["extra"] = 1
    elif what == "no comment":
        tests[0]["comment"] = ""
    elif what == "seed a number":
        tests[0]["input"]["seed"] = 7


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("count", "count must be"),
        ("version", "version must be"),
        ("id", "ids must count from 1"),
        ("note missing", "Contraction has no note"),
        ("note stale", "the note of Contraction"),
        ("note without vectors", "Utf8 has a note, but no vector"),
        ("flag unknown", "Cosmic"),
        ("bits", "digits"),
        ("question twice", "asks what another asks"),
        ("unknown key", "extra"),
        ("no comment", "comment"),
        ("seed a number", "seed"),
    ],
)
def test_the_lint_finds(folder, what, said):
    file = folder / "adamw.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    _change(document, what)
    file.write_text(json.dumps(document), encoding="utf-8")
    _, mistakes = lint(folder)
    assert mistakes
    assert any(said in mistake for mistake in mistakes), mistakes


def test_the_lint_finds_what_is_no_json_of_ours(folder):
    text = (folder / "sums.json").read_text(encoding="utf-8")
    (folder / "sums.json").write_text(text.replace('"count"', '"count": 1, "count"', 1), encoding="utf-8")
    assert any("'count' is there twice" in mistake for mistake in lint(folder)[1])
    version = f'"version": {VECTORS_VERSION}'
    (folder / "sums.json").write_text(text.replace(version, '"version": NaN', 1), encoding="utf-8")
    assert any("JSON has no NaN" in mistake for mistake in lint(folder)[1])
    (folder / "sums.json").write_text(text, encoding="utf-8")
    (folder / "old.json").write_text("{}", encoding="utf-8")
    assert any("old.json is no file of vectors" in mistake for mistake in lint(folder)[1])


def test_the_lint_misses_a_flag_that_no_vector_has(folder):
    document = json.loads((folder / "coins.json").read_text(encoding="utf-8"))
    for test in document["tests"]:
        test["flags"] = [flag for flag in test["flags"] if flag != "Utf8"]
    document["notes"].pop("Utf8")
    (folder / "coins.json").write_text(json.dumps(document), encoding="utf-8")
    assert "no vector has the flag Utf8" in lint(folder)[1]


@pytest.mark.parametrize("line", ["philox2x32 10" + " 00000000" * 6, "threefry2x32 20" + " 000000000" * 6, "zz"])
def test_known_answers_of_another_form(folder, line):
    file = folder / "threefry.txt"
    file.write_text(file.read_text() + f"{line}\n")
    assert any("threefry.txt, line 34" in mistake for mistake in lint(folder)[1])


def test_a_file_that_is_no_text(folder):
    (folder / "coins.json").write_bytes(b"\xff")
    assert any("coins.json" in mistake for mistake in lint(folder)[1])


# Descriptions


def test_tasks_and_records_survive_their_descriptions():
    from magma_conformance.cases.pairwise import pairwise

    for case in pairwise()[:12]:
        task = case.task()
        again = task_from(json.loads(json.dumps(describe_task(task))), key=task.key)
        assert describe_task(again) == describe_task(task)
        assert run_case(open_implementation("numpy", "eager", "cpu"), case).status == "equal"
        records = open_implementation("numpy", "eager", "cpu").run(again)
        description = json.loads(json.dumps(describe_records(records, ["w"])))
        for record, copy in zip(records, records_from(description, ["w"]), strict=True):
            assert {name: to_json(np.asarray(x)) for name, x in record.items()} == {
                name: to_json(x) for name, x in copy.items()
            }


@pytest.mark.parametrize(
    ("dtype", "shape", "bits", "said"),
    [
        ("float8", [1], "00", "dtype must be one of"),
        ("float32", [2], "00000000", "2 words"),
        ("float32", [1], "0000", "8 hexadecimal digits"),
        ("float32", [1], "0000000g", "hexadecimal"),
        ("float32", [-1], "", "negative"),
        ("bool", [1], "02", "00 or 01"),
        ("float32", [2**70], "", "words"),
    ],
)
def test_words_that_are_none(dtype, shape, bits, said):
    with pytest.raises(ValueError, match=said):
        from_bits(dtype, shape, bits)


def test_long_texts_of_words_are_checked_too():
    many = np.arange(2**16, dtype=np.uint32)
    text = to_bits(many)
    assert np.array_equal(from_bits("uint32", [2**16], text), many)
    for blanks in (text + " ", text.replace(" ", "  ", 1), text.replace(" ", "\t"), text + "\r"):
        assert np.array_equal(from_bits("uint32", [2**16], blanks), many)
    for wrong in (text[:-1], text + " 00000000", "g" + text[1:]):
        with pytest.raises(ValueError, match=r"words|hexadecimal"):
            from_bits("uint32", [2**16], wrong)
