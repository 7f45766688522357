"""A second implementation of docs/spec.md in plain Python, one element at a time; read it next to the document.

It shares nothing with magma_core. Python floats hold binary32, bfloat16 and binary16 numbers.
Run as a program, it prints the JSON block of the document's section 10.
"""

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Options: TypeAlias = dict[str, Any]  # of a base or a rule, with its "kind"
State: TypeAlias = dict[str, Any]  # lists of floats, or floats

# ---- 1. Arithmetic. binary64 has more than 2*24 + 2 bits, so one operation in binary64, rounded to binary32, equals
# the correctly rounded result.

PRECISION = {"float32": (24, -126, 128), "bfloat16": (8, -126, 128), "float16": (11, -14, 16)}
MASK = 0xFFFFFFFF
NAN, INF = math.nan, math.inf


def rounded(x: float, format: str = "float32") -> float:
    """The nearest number of the format, ties to even, with subnormals and infinities."""
    bits, smallest, limit = PRECISION[format]
    if x == 0 or math.isinf(x) or math.isnan(x):
        return x
    unit = max(math.frexp(x)[1], smallest + 1) - bits  # the last place of x is worth 2^unit
    y = math.ldexp(float(round(math.ldexp(abs(x), -unit))), unit)  # round() is exact, ties to even
    return math.copysign(INF if y >= 2.0**limit else y, x)


def add(x: float, y: float) -> float:
    return rounded(x + y)


def sub(x: float, y: float) -> float:
    return rounded(x - y)


def mul(x: float, y: float) -> float:
    return rounded(x * y)


def div(x: float, y: float) -> float:
    if y != 0:
        return rounded(x / y)
    return NAN if x == 0 or math.isnan(x) else math.copysign(INF, x) * math.copysign(1, y)


def sqrt(x: float) -> float:
    return NAN if math.isnan(x) or x < 0 else rounded(math.sqrt(x))


def flush(x: float) -> float:  # 1.2
    return 0.0 if abs(x) < 2.0**-100 else x


def rint(x: float) -> int:  # 1.1
    return round(x)


def const(x: float) -> float:  # 1.3, written [x] in the document
    return flush(rounded(float(x)))


# ---- 2. State; the bases and rules with their defaults (4, 6)

BASES: dict[str, Options] = {
    "sgd": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "rmsprop": {"beta2": 0.99, "eps": 1e-8, "momentum": 0.9, "weight_decay": 0.0},
    "adam": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    "laprop": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
}
RULES = {  # survival, weight
    "dense": ("always", "one"),
    "skip_update": ("p", "1/p"),
    "magma": ("p", "score"),
    "damping": ("always", "score"),
    "score_survival": ("score", "one"),
    "score_survival_damped": ("score", "score"),
    "unscaled": ("p", "one"),  # the document does not name these two
    "score_survival_inverse": ("score", "1/p"),
}
OPTIONS: Options = {"p": 0.5, "tau": 2.0, "a": 0.9, "initial_score": 0.5, "momentum": "after", "decay": "masked"}


def settings(base: Options, rule: Options, block_axes: Sequence[int] | None) -> tuple[Options, Options, str, str, bool]:
    """All options of a base and a rule; without masking the rule is dense, with its kind of decay."""
    rule = OPTIONS | rule
    if block_axes is None:
        rule = rule | {"kind": "dense"}
    survival, weight = RULES[rule["kind"]]
    return BASES[base["kind"]] | base, rule, survival, weight, "score" in (survival, weight)


def init(*, shape: Sequence[int], block_axes: Sequence[int] | None, base: Options, rule: Options) -> State:
    base, rule, _, _, scored = settings(base, rule, block_axes)
    kind, size = base["kind"], math.prod(shape)
    state: State = {}
    if kind != "rmsprop" or scored:
        state["mu"] = [0.0] * size
    if kind != "sgd":
        state["nu"] = [0.0] * size
    if kind in ("adam", "adamw", "laprop"):
        state["p1"] = state["p2"] = 1.0
    if scored:
        state["score"] = [const(rule["initial_score"])] * math.prod(shape[axis] for axis in block_axes or ())
    return state


# ---- 3. Blocks


def blocks(shape: Sequence[int], block_axes: Sequence[int]) -> list[list[int]]:
    """For each block, the row-major positions of its elements in the tensor."""
    extents = [shape[axis] for axis in block_axes]
    found: list[list[int]] = [[] for _ in range(math.prod(extents))]
    for position, index in enumerate(itertools.product(*map(range, shape))):
        b = 0
        for axis, extent in zip(block_axes, extents, strict=True):
            b = b * extent + index[axis]
        found[b].append(position)
    return found


# ---- 4. Bases


def moments(base: Options, scored: bool, g: Sequence[float], state: State) -> tuple[State, list[float]]:
    """The new state, and the direction before decay. g is flushed."""
    kind, n, new = base["kind"], len(g), dict(state)
    out: list[float] = []
    mu, nu = list(state.get("mu", ())), list(state.get("nu", ()))
    b1: float = base["beta1"] if "beta1" in base else base["momentum"]
    b2: float = base.get("beta2", math.nan)  # all but SGD
    if kind == "sgd":  # 4.1
        for i in range(n):
            mu[i] = flush(add(mul(const(b1), mu[i]), g[i]))
            out.append(add(g[i], mul(const(b1), mu[i])) if base["nesterov"] else mu[i])
        return new | {"mu": mu}, out

    eps = const(base["eps"])
    for i in range(n):
        nu[i] = flush(add(mul(const(b2), nu[i]), mul(const(1 - b2), mul(g[i], g[i]))))
    new["nu"] = nu
    if kind == "rmsprop":  # 4.2
        out = [div(g[i], add(sqrt(nu[i]), eps)) for i in range(n)]
        if scored:
            new["mu"] = [flush(add(mul(const(b1), mu[i]), mul(const(1 - b1), g[i]))) for i in range(n)]
        return new, out

    new["p1"] = flush(mul(state["p1"], const(b1)))
    new["p2"] = flush(mul(state["p2"], const(b2)))
    c1, c2 = div(1.0, sub(1.0, new["p1"])), div(1.0, sub(1.0, new["p2"]))
    for i in range(n):
        root = add(sqrt(mul(nu[i], c2)), eps)
        x = div(g[i], root) if kind == "laprop" else g[i]  # 4.4, 4.3
        mu[i] = flush(add(mul(const(b1), mu[i]), mul(const(1 - b1), x)))
        out.append(mul(mu[i], c1) if kind == "laprop" else div(mul(mu[i], c1), root))
    return new | {"mu": mu}, out


# ---- 5. Alignment


def quantised(x: Sequence[float]) -> list[int]:  # 5.1
    if not all(map(math.isfinite, x)) or not any(x):
        return [0] * len(x)
    e = math.frexp(max(map(abs, x)))[1]  # frexp gives 2^(e-1) <= max|x| < 2^e
    return [rint(mul(v, 2.0 ** (15 - e))) for v in x]


def sums(m: Sequence[float], g: Sequence[float]) -> tuple[int, ...]:  # 5.2
    xs, ys = quantised(m), quantised(g)
    return tuple(sum(u * v for u, v in zip(*pair, strict=True)) for pair in ((xs, ys), (xs, xs), (ys, ys)))


def real(s: int) -> float:  # 5.3
    m = abs(s)
    h, d, low = m >> 38, (m >> 14) % 2**24, m % 2**14
    x = add(add(mul(2.0**38, float(h)), mul(2.0**14, float(d))), float(low))
    return -x if s < 0 else x


def cosine(xy: int, xx: int, yy: int) -> float:  # 5.3
    if xx == 0 or yy == 0:
        return 0.0
    return min(max(div(real(xy), mul(sqrt(real(xx)), sqrt(real(yy)))), -1.0), 1.0)


def sigmoid(c: float, tau: float) -> float:  # 5.4
    z = mul(c, const(1 / tau))
    x = min(abs(z), 64.0)
    n = float(rint(mul(x, const(1.4426950408889634))))
    r = add(sub(mul(const(0.693145751953125), n), x), mul(const(1.4286068203094173e-06), n))
    q = const(1 / 5040)
    for k in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1):
        q = add(mul(q, r), const(k))
    e = mul(q, 2.0**-n)
    return div(e if z < 0 else 1.0, add(1.0, e))


# ---- 7. Keep masks


def threefry(k0: int, k1: int, x0: int, x1: int) -> tuple[int, int]:  # 7.1
    k = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    x0, x1 = (x0 + k0) & MASK, (x1 + k1) & MASK
    for i in range(5):
        for turn in (17, 29, 16, 24) if i % 2 else (13, 15, 26, 6):
            x0 = (x0 + x1) & MASK
            x1 = ((x1 << turn | x1 >> (32 - turn)) & MASK) ^ x0
        x0, x1 = (x0 + k[(i + 1) % 3]) & MASK, (x1 + k[(i + 2) % 3] + i + 1) & MASK
    return x0, x1


def coin(seed: int, name: str, t: int, b: int) -> int:  # 7.2
    h0, h1 = struct.unpack(">II", hashlib.sha256(name.encode("utf-8")).digest()[:8])
    return threefry(*threefry(seed >> 32, seed & MASK, h0, h1), t, b)[0]


def threshold(p: float) -> int:  # 7.3
    return round(p * 2.0**24)


def score_threshold(s: float) -> int:  # 7.3
    return rint(mul(s, 2.0**24))


def kept(u: int, limit: int) -> bool:  # 7.3
    return u >> 8 < limit


# ---- 2, 6, 8. The step


def score(s: float, c: float, tau: float, a: float) -> float:  # 5.5
    return flush(add(mul(const(a), s), mul(const(1 - a), sigmoid(c, tau))))


def step(
    theta: Sequence[float],
    g: Sequence[float],
    state: State,
    *,
    shape: Sequence[int],
    name: str,
    t: int,
    lr: float,
    seed: int,
    block_axes: Sequence[int] | None,
    base: Options,
    rule: Options,
    format: str = "float32",
) -> tuple[list[float], State, dict[str, list[Any]]]:
    """(new theta, new state, report) of one parameter; lists are row-major, block by block in state and report.

    base and rule are the keys of BASES and RULES under "kind", and any options that are not the default.
    """
    base, rule, survival, weight, scored = settings(base, rule, block_axes)
    lr = flush(rounded(float(lr)))
    g = [flush(x) for x in g]
    new, direction = moments(base, scored, g, state)

    lam = const(base["weight_decay"])
    decays = lam != 0
    if decays and rule["decay"] == "masked":  # 4.5
        direction = [add(d, mul(lam, flush(x))) for d, x in zip(direction, theta, strict=True)]
    delta = [flush(d) for d in direction]

    out = list(theta)
    report: dict[str, list[Any]] = {"sums": [], "cosine": [], "coins": [], "keep": []}
    if scored:
        new["score"] = list(state["score"])
    for b, block in enumerate([range(len(theta))] if block_axes is None else blocks(shape, block_axes)):
        if scored:  # 5
            mu = new["mu"] if rule["momentum"] == "after" else state["mu"]
            report["sums"].append(sums([mu[i] for i in block], [g[i] for i in block]))
            report["cosine"].append(cosine(*report["sums"][b]))
            s = new["score"][b] = score(state["score"][b], report["cosine"][b], rule["tau"], rule["a"])

        limit = threshold(1.0 if survival == "always" else rule["p"])  # 6, 7.3
        if survival == "score":
            limit = score_threshold(s)
        w = s if weight == "score" else 1.0
        if weight == "1/p" and threshold(rule["p"]):
            w = const(1 / rule["p"])
        scale, keep = flush(mul(lr, w)), True
        if block_axes is not None:
            report["coins"].append(coin(seed, name, t, b))
            keep = kept(report["coins"][b], limit)
            report["keep"].append(keep)

        for i in block:  # 8
            dense = decays and rule["decay"] == "dense"
            base_value = flush(mul(flush(theta[i]), sub(1.0, mul(lr, lam)))) if dense else theta[i]
            if keep:
                out[i] = rounded(flush(sub(base_value, mul(scale, delta[i]))), format)
            elif dense:
                out[i] = rounded(base_value, format)
    return out, new, report


# ---- 10. Worked numbers

EXAMPLES: list[dict[str, Any]] = [
    {
        "title": "Magma over AdamW, binary32, a row is a block",
        "format": "float32",
        "shape": [2, 3],
        "block_axes": [0],
        "name": "layers.0.w",
        "seed": 2**40 + 8,
        "lr": 0.1,
        "base": {"kind": "adamw"},
        "rule": {"kind": "magma"},
        "theta": [1.0, -2.0, 0.5, 3.0, 0.25, -1.0],
        "gradients": [[0.5, -1.0, 0.125, 1e-4, 2e-4, -3e-4], [-0.25, 1.5, 0.1, 2e-4, 1e-4, -1e-4]],
    },
    {
        "title": "SkipUpdate over SGD, bfloat16, the whole tensor is one block",
        "format": "bfloat16",
        "shape": [4],
        "block_axes": [],
        "name": "b",
        "seed": 9,
        "lr": 0.01,
        "base": {"kind": "sgd", "nesterov": True},
        "rule": {"kind": "skip_update", "p": 0.3},
        "theta": [1.0, -1.0, 0.0, 3.0],
        "gradients": [[0.5, 1.0, -1.5, 0.1], [0.5, -2.0, 1.0, -0.1]],
    },
    {
        "title": "score survival, damped, over LaProp, binary16, a column is a block",
        "format": "float16",
        "shape": [2, 3],
        "block_axes": [1],
        "name": "w",
        "seed": 3,
        "lr": 0.05,
        "base": {"kind": "laprop", "weight_decay": 0.5},
        "rule": {"kind": "score_survival_damped", "tau": 0.5, "a": 0.75, "momentum": "before", "decay": "dense"},
        "theta": [1.0, 2.0, -0.5, 0.1, -3.0, 0.75],
        "gradients": [[1.0, -0.5, 0.25, 0.5, 0.1, -2.0], [0.9, -0.5, -0.3, 0.6, -1.0, 2.0]],
    },
]


def bits(x: Any, format: str = "float32") -> Any:
    """The bits of a number, or of each in a list, in hexadecimal."""
    if isinstance(x, list):
        return [bits(one, format) for one in x]
    return struct.pack(">e" if format == "float16" else ">f", x)[: 4 if format == "float32" else 2].hex()


def worked_examples() -> Iterator[dict[str, Any]]:
    """The examples with every option, and the results of their two steps."""
    for example in EXAMPLES:
        title, shape, axes, format = (example[key] for key in ("title", "shape", "block_axes", "format"))
        inputs = {key: x for key, x in example.items() if key not in ("title", "theta", "gradients")}
        base, rule, *_ = settings(example["base"], example["rule"], axes)
        inputs |= {"base": example["base"] | base, "rule": example["rule"] | rule}
        theta, *gradients = (
            [rounded(x, format) for x in values] for values in (example["theta"], *example["gradients"])
        )
        state = init(shape=shape, block_axes=axes, base=base, rule=rule)
        steps: list[Any] = []
        worked = {"title": title} | inputs | {"theta": bits(theta, format), "steps": steps}
        for t, g in enumerate(gradients, 1):
            theta, state, report = step(theta, g, state, t=t, **inputs)
            report["cosine"] = bits(report["cosine"])
            report["coins"] = [f"{coin:08x}" for coin in report["coins"]]
            one = {"t": t, "g": bits(g, format), "theta": bits(theta, format)}
            steps.append(one | {key: bits(value) for key, value in state.items()} | report)
        yield worked


def document() -> str:
    """The JSON block of section 10, one line per entry."""

    def entries(x: Mapping[str, Any], indent: str) -> str:
        return ",\n".join(f'{indent}"{key}": {json.dumps(x[key], ensure_ascii=False)}' for key in x if key != "steps")

    steps = (
        (entries(example, " "), ",\n".join(f"  {{\n{entries(one, '   ')}\n  }}" for one in example["steps"]))
        for example in worked_examples()
    )
    return "[\n" + ",\n".join(f'{{\n{head},\n "steps": [\n{rest}\n ]\n}}' for head, rest in steps) + "\n]"


if __name__ == "__main__":
    print(document())
