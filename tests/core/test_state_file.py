"""The file format of docs/state.md: state round-trips, equal states give equal bytes, and anything else is refused."""

import json
import os
import re
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from magma_conformance.bits import assert_bits_equal
from magma_numpy import namespace as xp
from paths import REPOSITORY
from steps import AXES, BASES, NAMES, RULES, Run, label

import magma_core
from magma_core import SGD, AdamW, RMSProp, Saved, State, dense, magma, read_state, skip_update, write_state

DOCUMENT = REPOSITORY / "docs" / "state.md"
SEED = 2**64 - 1
every_pair = pytest.mark.parametrize(("base", "rule"), [(b, r) for b in BASES for r in RULES], ids=label)


def saved_of(run: Run, seed: int = SEED) -> dict[str, Saved]:
    base, rule = run.options["base"], run.options["rule"]
    return {
        name: Saved(state_shape(run, i), AXES[name], run.step, seed, base, rule, run.states[i])
        for i, name in enumerate(run.names)
    }


def state_shape(run: Run, i: int) -> tuple[int, ...]:
    return tuple(run.params[i].shape)


def example(steps: int = 2) -> dict[str, Saved]:
    """Parameters of many layouts, some of other groups than the rest, under names that are hard to write."""
    backend = type(
        "Backend", (), {"xp": xp, "from_numpy": staticmethod(np.array), "to_numpy": staticmethod(np.asarray)}
    )
    parameters = saved_of(Run(backend, AdamW(), magma()).advance(steps, seed=SEED))
    other = saved_of(Run(backend, RMSProp(weight_decay=0.1), skip_update(p=0.3)).advance(1), seed=3)
    return parameters | {'β/∇ 𝛥\n"': other["w"], "": other["scalar"], "w/mu": replace(other["v"], step=0)}


def assert_same(found: dict[str, Saved], expected: dict[str, Saved]) -> None:
    assert list(found) == sorted(expected)
    for name, one in expected.items():
        for field in ("shape", "block_axes", "step", "seed", "base", "rule"):
            assert getattr(found[name], field) == getattr(one, field), (name, field)
        for field, value in one.state._asdict().items():
            there = getattr(found[name].state, field)
            assert (there is None) == (value is None), (name, field)
            if value is not None:
                assert_bits_equal(there, np.asarray(value), f"{field} of {name!r}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("state") / "valid"
    write_state(file, example())
    return file.read_bytes()


# There and back


@every_pair
def test_what_is_written_is_read(numpy_backend, path, base, rule):
    expected = saved_of(Run(numpy_backend, base, rule).advance(3))
    write_state(path, expected)
    assert_same(read_state(path), expected)


@every_pair
def test_resume_is_uninterrupted(numpy_backend, path, base, rule):
    whole, first = (Run(numpy_backend, base, rule) for _ in range(2))
    write_state(path, saved_of(first.advance(2), seed=7))
    found = read_state(path)
    first.states = [found[name].state for name in NAMES]
    first.step = found["w"].step
    whole.advance(5)
    first.advance(3)
    for ours, theirs in zip(first.states, whole.states, strict=True):
        for field, x in theirs._asdict().items():
            assert x is None or assert_bits_equal(getattr(ours, field), x, field) is None
    for ours, theirs in zip(first.params, whole.params, strict=True):
        assert_bits_equal(ours, theirs, "param")


def test_groups_names_and_steps_of_all_kinds(path):
    write_state(path, example())
    assert_same(read_state(path), example())
    state = json.loads(json.loads(parts(path.read_bytes())[0])["__metadata__"]["state"])
    assert len(state["groups"]) == 2
    assert {entry["group"] for entry in state["parameters"].values()} == {0, 1}


@pytest.mark.parametrize("rule", RULES, ids=label)
@pytest.mark.parametrize("base", BASES, ids=label)
def test_started_is_what_init_makes(base, rule):
    for axes in ((), (1,), None):
        made = magma_core.init(np.ones((2, 3), np.float32), base=base, rule=rule, block_axes=axes, xp=xp)
        start = Saved((2, 3), axes, 9, 0, base, rule, State()).started()
        assert start.step == 0
        for field, value in made._asdict().items():
            there = getattr(start.state, field)
            assert (value is None) == (there is None) == (field not in start.fields)
            if value is not None:
                assert_bits_equal(there, value, field)


# The same state, the same bytes


GOLDEN = (
    '{"__metadata__":{"format":"magma-state","state":"{\\"groups\\":[{\\"base\\":{\\"kind\\":\\"sgd\\",\\"momentum\\":0.5,'
    '\\"nesterov\\":false,\\"weight_decay\\":1e-05},\\"rule\\":{\\"decay\\":\\"masked\\",\\"ema\\":0.9,\\"initial_score\\"'
    ':0.5,\\"momentum\\":\\"after\\",\\"p\\":0.5,\\"survival\\":\\"p\\",\\"tau\\":2.0,\\"weight\\":\\"score\\"},\\"seed\\":'
    '7}],\\"parameters\\":{\\"\\\\u03b2\\":{\\"block_axes\\":[1],\\"group\\":0,\\"shape\\":[2,1],\\"step\\":4}},\\"spec\\"'
    ':1}","version":"1"},"\\u03b2/mu":{"data_offsets":[0,8],"dtype":"F32","shape":[2,1]},"\\u03b2/score":{"data_offsets":'
    '[8,12],"dtype":"F32","shape":[1]}}'
)
"""Once, by hand: a change of the layout has to be a change of the version."""


def test_golden_bytes(path):
    state = State(mu=np.float32([[1.0], [np.nan]]), score=np.float32([0.5]))
    state.mu[1].view(np.uint32)[:] = 0xFFC12345
    write_state(path, {"β": Saved((2, 1), (1,), 4, 7, SGD(momentum=0.5, weight_decay=1e-5), magma(), state)})
    header = GOLDEN.encode() + b" " * (-len(GOLDEN) % 8)
    data = bytes.fromhex("0000803f0000c07f0000003f")
    assert path.read_bytes() == struct.pack("<Q", len(header)) + header + data


def test_bytes_do_not_depend_on_order_or_memory(tmp_path):
    parameters = example()
    write_state(tmp_path / "a", parameters)
    turned = {
        name: replace(one, state=State(*(None if x is None else np.array(x, order="F") for x in one.state)))
        for name, one in reversed(parameters.items())
    }
    write_state(tmp_path / "b", turned)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nan_in_moments_comes_back(path):
    state = State(mu=np.float32([np.nan, np.inf, -np.inf, 1.0]))
    write_state(path, {"w": Saved((4,), None, 1, 0, SGD(), magma(), state)})
    assert_bits_equal(read_state(path)["w"].state.mu, state.mu)


# Others read it


def test_safetensors_reads_it(path):
    write_state(path, example())
    tensors = safetensors.numpy.load_file(path)
    expected = {f"{name}/{field}": x for name, one in example().items() for field, x in one.state._asdict().items()}
    expected = {key: np.asarray(x) for key, x in expected.items() if x is not None}
    assert tensors.keys() == expected.keys()
    for key, x in expected.items():
        assert_bits_equal(tensors[key], x, key)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata().keys() == {"format", "version", "state"}


def test_what_safetensors_writes_is_read(path, valid):
    """Its metadata are in another order at every run, and its characters are not escaped."""
    path.write_bytes(valid)
    metadata = json.loads(parts(valid)[0])["__metadata__"]
    tensors = {key: np.array(x) for key, x in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file(tensors, path, metadata | {"tool": "something else"})
    assert_same(read_state(path), example())


def test_reader_of_the_document(path):
    """It stands in docs/state.md, and imports no more than it says."""
    write_state(path, example())
    source = re.search(r"```python\n(import json\n.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    assert len(source.splitlines()) <= 24
    assert set(re.findall(r"import (\w+)", source)) == {"json", "struct"}
    space: dict[str, Any] = {}
    exec(source, space)
    found, expected = space["read"](path), read_state(path)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        state = found[name].pop("state")
        assert state.keys() == one.fields.keys()
        for field, (shape, values) in state.items():
            assert_bits_equal(np.float32(values).reshape(shape), getattr(one.state, field), f"{field} of {name!r}")
        described = {**found[name], "shape": tuple(found[name]["shape"])}
        assert (described["shape"], described["step"], described["seed"]) == (one.shape, one.step, one.seed)
        assert described["block_axes"] == (None if one.block_axes is None else list(one.block_axes))
        assert magma_core.state_file.config.base_from_plain(described["base"]) == one.base
        assert magma_core.state_file.config.rule_from_plain(described["rule"]) == one.rule


# All or nothing


def fail(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_no_trace(monkeypatch, path, call):
    path.write_bytes(b"before")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_state(path, example())
    assert path.read_bytes() == b"before"
    assert os.listdir(path.parent) == [path.name]


def test_what_is_there_is_replaced(path):
    path.write_bytes(b"before" * 10_000)
    write_state(path, example())
    assert_same(read_state(path), example())
    assert os.listdir(path.parent) == [path.name]


def test_a_link_stays_one(path):
    link = path.with_name("link")
    link.symlink_to(path)
    write_state(link, example())
    assert link.is_symlink()
    assert_same(read_state(path), example())


def test_permissions_are_those_of_a_new_file(path):
    path.with_name("usual").touch()
    write_state(path, example())
    assert path.stat().st_mode == path.with_name("usual").stat().st_mode


def test_a_path_may_be_text(path):
    write_state(str(path), example())
    assert_same(read_state(str(path)), example())


@pytest.mark.parametrize("write", [False, True])
def test_paths_that_are_no_files(tmp_path, write):
    def use(path: Any) -> None:
        write_state(path, example()) if write else read_state(path)

    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        use(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        use(tmp_path / "missing" / "state" if write else tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe' is no regular file"):
        use(tmp_path / "pipe")
    with pytest.raises(TypeError):
        use(None)
    assert os.listdir(tmp_path) == ["pipe"]


# Nothing else is let in


def parts(file: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return file[8 : 8 + length], file[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def refused(path: Path, file: bytes, match: str | None = None) -> None:
    path.write_bytes(file)
    with pytest.raises(ValueError, match=match) as caught:
        read_state(path)
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(f"state file '{path}' ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert path.read_bytes() == file


def test_every_truncation_is_refused(path, valid):
    header = len(parts(valid)[0])
    for length in {*range(64), *range(64, len(valid), 37), header + 7, header + 8, len(valid) - 1}:
        refused(path, valid[:length])


OTHER_FILES = {
    "nothing": (b"", "has 0 bytes, too few"),
    "zeros": (bytes(64), "does not begin with '{'"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), "only 43 bytes in all: it is of another format, or was cut off"),
    "a zip": (b"PK\x03\x04" + bytes(60), "another format, or was cut off"),
    "a huge header": (struct.pack("<Q", 2**63) + b"{}", "9223372036854775808 bytes according to its first eight"),
    "no JSON": (join(b"{:}", b""), "header that cannot be read"),
    "no UTF-8": (join(b'{"\xff":1}', b""), "header that cannot be read"),
    "a list": (join(b"[]", b""), "does not begin with '{'"),
    "spaces first": (join(b" {}", b""), "does not begin with '{'"),
    "more after it": (join(b"{}{}", b""), "header that cannot be read"),
    "no metadata": (join(b"{}", b""), "has format None, not 'magma-state'"),
    "another's": (join({"__metadata__": {"format": "pt"}}, b""), "has format 'pt', not 'magma-state'"),
    "metadata of numbers": (join({"__metadata__": {"format": 1}}, b""), "does not map names to text"),
    "a list of metadata": (join({"__metadata__": []}, b""), "does not map names to text"),
    "many digits": (join(b'{"a":' + b"1" * 5000 + b"}", b""), "header that cannot be read"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_refused(path, name):
    refused(path, *OTHER_FILES[name])


@pytest.mark.parametrize("version", ["2", "0", "", "1.0", None])
def test_another_version_is_refused(path, valid, version):
    header, data = parts(valid)
    header = json.loads(header)
    header["__metadata__"]["version"] = version
    if version is None:
        del header["__metadata__"]["version"]
    refused(path, join(header, data), f"has version {version!r}, and '1' can be read")


W = "w/mu"


def last(header: dict[str, Any]) -> Any:
    return max((x for key, x in header.items() if key != "__metadata__"), key=lambda x: x["data_offsets"])


HEADERS: dict[str, tuple[Any, str]] = {
    "a tensor is missing": (lambda h: h.pop("w/score"), "and not in as many from"),
    "a tensor too many": (
        lambda h: h.update({"x/mu": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "has tensors that its metadata do not call for, of 'x'",
    ),
    "a field too many": (
        lambda h: h.update({"w/x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "has a tensor that its metadata do not call for, 'w/x'",
    ),
    "a tensor of no parameter": (
        lambda h: h.update({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "has a tensor 'w', which is no parameter's",
    ),
    "another type": (lambda h: h[W].update(dtype="I32"), "'w/mu' as 'I32', not 'F32'"),
    "a type of fewer bytes": (lambda h: h[W].update(dtype="F16"), "'w/mu' as 'F16', not 'F32'"),
    "no type": (lambda h: h[W].update(dtype=None), "describes the tensor 'w/mu'"),
    "another shape": (lambda h: h[W].update(shape=[8, 6]), r"'w/mu' of shape \(8, 6\), not \(6, 8\)"),
    "a shape of more": (lambda h: h[W].update(shape=[6, 9]), r"'w/mu', of shape \(6, 9\), at bytes .*: it was damaged"),
    "a negative shape": (lambda h: h[W].update(shape=[-6, -8]), "describes the tensor 'w/mu'"),
    "a shape of reals": (lambda h: h[W].update(shape=[6.0, 8]), "describes the tensor 'w/mu'"),
    "a shape of truths": (lambda h: h[W].update(shape=[True, 48]), "describes the tensor 'w/mu'"),
    "a huge shape": (lambda h: h[W].update(shape=[2**62, 0]), "describes the tensor 'w/mu'"),
    "many axes": (lambda h: h[W].update(shape=[1] * 65), "describes the tensor 'w/mu'"),
    "an overlap": (
        lambda h: h[W].update(data_offsets=[h[W]["data_offsets"][0] - 4, h[W]["data_offsets"][1] - 4]),
        "bytes",
    ),
    "beyond the end": (lambda h: last(h).update(data_offsets=[n + 2**40 for n in last(h)["data_offsets"]]), "bytes"),
    "a longer last": (lambda h: last(h)["data_offsets"].__setitem__(1, 2**50), "bytes"),
    "negative bytes": (lambda h: h[W].update(data_offsets=[-4, 0]), "describes the tensor 'w/mu'"),
    "reversed bytes": (lambda h: h[W]["data_offsets"].reverse(), "bytes"),
    "three offsets": (lambda h: h[W]["data_offsets"].append(0), "describes the tensor 'w/mu'"),
    "one thing more": (lambda h: h[W].update(crc=0), "describes the tensor 'w/mu'"),
    "no description": (lambda h: h.update({W: None}), "describes the tensor 'w/mu'"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_is_not_the_file_s_is_refused(path, valid, name):
    header, data = parts(valid)
    header = json.loads(header)
    change, match = HEADERS[name]
    change(header)
    refused(path, join(header, data), match)


def test_bytes_of_no_tensor_are_refused(path, valid):
    refused(path, valid + b"\0\0\0\0", "added to; save it anew")


def edited(valid: bytes, change: Any) -> bytes:
    """With other metadata; ``change`` gives the text, or changes what it is given."""
    header, data = parts(valid)
    header = json.loads(header)
    state = json.loads(header["__metadata__"]["state"])
    text = change(state)
    header["__metadata__"]["state"] = text if isinstance(text, str) else json.dumps(state)
    return join(header, data)


def put(*keys: Any, value: Any) -> Any:
    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def drop(*keys: Any) -> Any:
    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


P, G = ("parameters", "w"), ("groups", 1)  # the first is that of the parameter called ""

STATES: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda state: "{", "metadata that cannot be used"),
    "no object": (lambda state: "[]", "no object of JSON"),
    "nothing": (lambda state: "", "metadata that cannot be used"),
    "a key twice": (lambda state: json.dumps(state)[:-1] + ',"spec":1}', "has the key 'spec' twice"),
    "NaN": (lambda state: json.dumps(state).replace("1e-08", "NaN", 1), "has the constant NaN"),
    "Infinity": (lambda state: json.dumps(state).replace("1e-08", "-Infinity", 1), "has the constant -Infinity"),
    "a huge real": (lambda state: json.dumps(state).replace("1e-08", "1e999", 1), "eps must be at least"),
    "many digits": (lambda state: json.dumps(state).replace("1e-08", "1" * 5000, 1), "metadata that cannot be used"),
    "an integer too large": (lambda state: json.dumps(state).replace("1e-08", "1" * 4000, 1), "eps must be finite"),
    "one thing more": (put("more", value=1), "has an unknown 'more'"),
    "no spec": (drop("spec"), "lacks 'spec'"),
    "another spec": (put("spec", value=2), "spec is 2, and 1 can be read"),
    "spec a real": (put("spec", value=1.0), "spec is 1.0"),
    "spec a truth": (put("spec", value=True), "spec is True"),
    "groups an object": (put("groups", value={}), "groups is no list"),
    "a group that is none": (put(*G, value=3), "group 1 is no object"),
    "no seed": (drop(*G, "seed"), "group 1 lacks 'seed'"),
    "a seed too large": (put(*G, "seed", value=2**64), "seed must lie in"),
    "a seed below 0": (put(*G, "seed", value=-1), "seed must lie in"),
    "a real seed": (put(*G, "seed", value=1.0), "seed must be an integer"),
    "a true seed": (put(*G, "seed", value=True), "seed must be an integer"),
    "no base": (put(*G, "base", value=None), "base must map names"),
    "an unknown base": (put(*G, "base", "kind", value="lion"), "kind of a base must be one of"),
    "a base of no kind": (drop(*G, "base", "kind"), "kind of a base must be one of"),
    "a base of a strange kind": (put(*G, "base", "kind", value=[]), "kind of a base must be one of"),
    "a number missing": (drop(*G, "base", "eps"), "lacks 'eps'"),
    "a number too many": (put(*G, "base", "nesterov", value=True), "unknown 'nesterov'"),
    "beta of 1": (put(*G, "base", "beta1", value=1.0), "beta1 must lie in"),
    "beta as text": (put(*G, "base", "beta1", value="0.9"), "beta1 must be a real number"),
    "no rule": (put(*G, "rule", value=[]), "rule must map names"),
    "an unknown survival": (put(*G, "rule", "survival", value=["p"]), "survival must be one of"),
    "p of 2": (put(*G, "rule", "p", value=2), "p must lie in"),
    "a part of a rule missing": (drop(*G, "rule", "decay"), "lacks 'decay'"),
    "no parameters": (put("parameters", value={}), "parameters does not describe any"),
    "a list of parameters": (put("parameters", value=[1]), "parameters does not describe any"),
    "a parameter that is none": (put(*P, value=[]), "parameter 'w' is no object"),
    "one more parameter": (
        lambda state: state["parameters"].update(x=state["parameters"]["w"]),
        "lacks the tensors of 'x'",
    ),
    "one parameter less": (drop(*P), "has tensors that its metadata do not call for, of 'w'"),
    "more groups than parameters": (
        lambda state: state.update(groups=state["groups"] * 5),
        "there are 10 groups for 9 parameters",
    ),
    "no step": (drop(*P, "step"), "lacks 'step'"),
    "a step too large": (put(*P, "step", value=2**32), "step must lie in"),
    "a step below 0": (put(*P, "step", value=-1), "step must lie in"),
    "half a step": (put(*P, "step", value=0.5), "step must be an integer"),
    "no group": (put(*P, "group", value=2), "group of 'w' is 2, of 2 that there are"),
    "a group from the end": (put(*P, "group", value=-1), "group of 'w' is -1"),
    "another group": (put(*P, "group", value=0), "'w/"),
    "a strange shape": (put(*P, "shape", value="68"), "shape of 'w' is '68'"),
    "a transposed shape": (put(*P, "shape", value=[8, 6]), "'w/mu' of shape"),
    "strange axes": (put(*P, "block_axes", value=0), "block_axes of 'w' are 0"),
    "axes from the end": (put(*P, "block_axes", value=[-2]), "block_axes of 'w' are"),
    "axes that are not there": (put(*P, "block_axes", value=[2]), "out of range"),
    "axes twice": (put(*P, "block_axes", value=[0, 0]), "names an axis twice"),
    "other axes": (put(*P, "block_axes", value=[1]), "'w/score' of shape"),
    "not masked": (put(*P, "block_axes", value=None), "'w/score'"),
}


@pytest.mark.parametrize("name", STATES)
def test_metadata_that_are_not_as_they_must_be_are_refused(path, valid, name):
    change, match = STATES[name]
    refused(path, edited(valid, change), match)


def test_a_key_twice_in_the_header_is_refused(path, valid):
    header, data = parts(valid)
    again = json.dumps({W: json.loads(header)[W]}).encode()[1:]
    refused(path, join(header.rstrip()[:-1] + b"," + again, data), "has the key 'w/mu' twice")


def test_half_a_character_is_refused(path, valid):
    header, data = parts(valid)
    changed = header.replace(b'"u/', b'"\\ud800/').replace(b'\\"u\\"', b'\\"\\\\ud800\\"')
    refused(path, join(changed, data), "no text that UTF-8 can encode")


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("field", ["score", "mu_power", "nu_power"])
def test_values_that_no_step_gives_are_refused(path, valid, field, value):
    header, data = parts(valid)
    start = json.loads(header)[f"w/{field}"]["data_offsets"][0]
    data = data[:start] + np.float32(value).tobytes() + data[start + 4 :]
    refused(path, join(header, data), rf"'w' of which {field} must lie in \[0, 1\]")


@pytest.mark.parametrize("depth", [3, 100, 900, 990, 1000, 5000, 100_000])
def test_nesting_is_refused(path, valid, depth):
    """Where values are shown, as deep as they can be read."""
    nested = b"[" * depth + b"]" * depth
    header, data = parts(valid)
    refused(path, join(b'{"a":' + nested + b"}", b""))
    refused(path, join(b'{"__metadata__":' + nested + b"}", b""))
    for keys in (("spec",), ("groups",), (*G, "seed"), (*G, "base"), (*G, "base", "kind"), (*G, "base", "eps"), P):
        text = edited(valid, put(*keys, value="HERE"))
        header, data = parts(text)
        refused(path, join(header.replace(b'\\"HERE\\"', nested), data))


def test_nesting_is_refused_just_where_it_can_be_read_and_not_be_shown(path, valid):
    """Showing a value takes a little more of the stack than reading it took."""
    header, data = parts(edited(valid, put(*G, "base", "beta1", value="HERE")))
    for depth in range(900, 1000):
        refused(path, join(header.replace(b'\\"HERE\\"', b"[" * depth + b"]" * depth), data))


def test_no_memory_is_taken_that_the_file_does_not_have(path, valid):
    """Shapes that its metadata and its header agree on, of many times its size."""
    header, data = parts(edited(valid, put(*P, "shape", value=[2**15, 2**20])))
    header = json.loads(header)
    for field in ("mu", "nu"):
        header[f"w/{field}"]["shape"] = [2**15, 2**20]
    tracemalloc.start()
    refused(path, join(header, data), "it was damaged")
    assert tracemalloc.get_traced_memory()[1] < 100 * len(valid) + 2**20
    tracemalloc.stop()


fuzz = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def either(path: Path, file: bytes) -> None:
    path.write_bytes(file)
    error: Exception | None = None
    try:
        read_state(path)
    except ValueError as raised:
        error = raised
    assert error is None or type(error) is ValueError
    assert error is None or str(error).startswith(f"state file '{path}' ")
    assert error is None or (str(error).isprintable() and len(str(error)) < 1000)


@fuzz
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_refused_or_read(path, valid, changes):
    file = bytearray(valid)
    for place, bits in changes:
        file[int(place * len(file))] ^= bits
    either(path, bytes(file))


@fuzz
@given(places=st.tuples(st.floats(0, 1), st.floats(0, 1)), extra=st.binary(max_size=20))
def test_cut_and_spliced_files_are_refused_or_read(path, valid, places, extra):
    first, second = (int(place * len(valid)) for place in places)
    either(path, valid[:first] + extra + valid[second:])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**32, 2**64, -1, "w", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("kind"), inner, max_size=3),
    max_leaves=8,
)


def places_in(value: Any) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, inner in items for rest in [(), *places_in(inner)]]


@fuzz
@given(data=st.data(), value=json_values, in_header=st.booleans())
def test_any_value_anywhere_is_refused_or_read(path, valid, data, value, in_header):
    if not in_header:
        state = json.loads(json.loads(parts(valid)[0])["__metadata__"]["state"])
        keys = data.draw(st.sampled_from(places_in(state)))
        either(path, edited(valid, put(*keys, value=value)))
        return
    header = json.loads(parts(valid)[0])
    put(*data.draw(st.sampled_from(places_in(header))), value=value)(header)
    either(path, join(header, parts(valid)[1]))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.binary(max_size=64))
def test_any_bytes_are_refused(path, file):
    either(path, file)
    either(path, struct.pack("<Q", len(file)) + file)


# What cannot be saved


GOOD = Saved((2, 3), (0,), 1, 0, SGD(), magma(), State(mu=np.zeros((2, 3), np.float32), score=np.zeros(2, np.float32)))

BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no mapping": ([GOOD], TypeError, "must map names"),
    "no parameters": ({}, ValueError, "at least one parameter"),
    "a name that is none": ({1: GOOD}, TypeError, "must map names"),
    "half a character": ({"\ud800": GOOD}, ValueError, "no text that UTF-8 can encode"),
    "no Saved": ({"w": GOOD.state}, TypeError, "'w' cannot be saved: it must be a magma_core.Saved"),
    "no State": ({"w": replace(GOOD, state=None)}, TypeError, "with a magma_core.State"),
    "no base": ({"w": replace(GOOD, base=None)}, TypeError, "base must be"),
    "no rule": ({"w": replace(GOOD, rule=None)}, TypeError, "rule must be"),
    "step": ({"w": replace(GOOD, step=2**32)}, ValueError, "step must lie in"),
    "seed": ({"w": replace(GOOD, seed=-1)}, ValueError, "seed must lie in"),
    "shape": ({"w": replace(GOOD, shape=(-2, 3))}, ValueError, "shape must have"),
    "axes": ({"w": replace(GOOD, block_axes=(2,))}, ValueError, "out of range"),
    "a field missing": ({"w": replace(GOOD, state=State(mu=GOOD.state.mu))}, ValueError, "score must be there"),
    "a field too many": ({"w": replace(GOOD, rule=dense())}, ValueError, "score must be None"),
    "another shape": ({"w": replace(GOOD, block_axes=(1,))}, ValueError, r"score must be float32 of shape \(3,\)"),
    "another dtype": (
        {"w": replace(GOOD, state=GOOD.state._replace(mu=np.zeros((2, 3))))},
        ValueError,
        "mu must be float32 of shape .*, got float64",
    ),
    "a score of NaN": (
        {"w": replace(GOOD, state=GOOD.state._replace(score=np.float32([0, np.nan])))},
        ValueError,
        r"score must lie in \[0, 1\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_not_written(path, name):
    parameters, kind, match = BAD[name]
    with pytest.raises(kind, match=match):
        write_state(path, parameters)
    assert not path.exists()


def test_integers_and_axes_of_any_kind_are_written(path):
    odd = replace(GOOD, step=np.int64(5), seed=np.uint64(2**64 - 1), block_axes=(np.int64(-2),), shape=(np.int64(2), 3))
    write_state(path, {"w": odd})
    assert_same(read_state(path), {"w": replace(GOOD, step=5, seed=2**64 - 1)})
