"""Makes the results that test_sharding.py compares, in a process with eight virtual devices."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from magma_jax import Alignment, MagmaState, MagmaTransformation, by_rule
from sharding_problems import (
    ALL,
    AXES,
    DEVICES,
    PROBLEMS,
    RATE,
    SEED,
    STEPS,
    UNEVEN,
    Problem,
    Record,
    gradient,
    start,
)

ENVIRONMENT = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
    "PYTHONWARNINGS": "error",
}
"""What the process needs before it imports JAX."""

Entry = str | tuple[str, ...] | None
Specs = dict[str, P]
Trees = tuple[Any, MagmaState, dict[str, Alignment]]
Collective = tuple[str, list[int]]  # with the numbers of elements of its results and operands


@dataclass(frozen=True)
class Layout:
    """A mesh with axes x, y, z, and what the two axes of matrices are spread over: one way or several in turn."""

    mesh: tuple[int, ...]
    ways: tuple[tuple[Entry, Entry], ...]

    def make_mesh(self, kind: AxisType) -> jax.sharding.Mesh:
        return jax.make_mesh(self.mesh, ("x", "y", "z")[: len(self.mesh)], axis_types=(kind,) * len(self.mesh))

    def specs(self, names: Iterable[str]) -> Specs:
        return {name: _spec(name, *self.ways[i % len(self.ways)]) for i, name in enumerate(names)}


def _spec(name: str, first: Entry, second: Entry) -> P:
    rank = len(ALL[name][0])
    if name == "heads":
        return P(None, first or second)
    if name == "stack":
        return P(None, first, second)
    return P(first, second) if rank > 1 else P(*[first or second] * rank)


LAYOUTS = {
    "8: x": Layout((8,), (("x", None),)),
    "8: -,x": Layout((8,), ((None, "x"),)),
    "4x2: -,y": Layout((4, 2), ((None, "y"),)),
    "4x2: x,y": Layout((4, 2), (("x", "y"),)),
    "4x2: xy": Layout((4, 2), ((("x", "y"), None),)),
    "4x2: -": Layout((4, 2), ((None, None),)),
    "2x2x2: x,y": Layout((2, 2, 2), (("x", "y"),)),
    "2x2x2: zx,y": Layout((2, 2, 2), ((("z", "x"), "y"),)),
    "1x8: x,y": Layout((1, 8), (("x", "y"),)),
}
MIXED = Layout((4, 2), ((None, ("y", "x")), ("y", "x"), ("x", None)))
SQUARE = LAYOUTS["4x2: x,y"]

PAIRS = (
    ("whole", "crossed"),
    ("rows", "bias"),
    ("columns", "scalar"),
    ("experts", "elements"),
    ("heads", "dense"),
    ("stack", "norm"),
)
SEVERAL = ("rows", "columns", "elements")
ROWS = ("rows",)


# Programs: what they exchange


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_SHAPE = re.compile(r"\b[a-z][a-z0-9]*\[([0-9,]*)\]")
_EXCHANGES = re.compile(r"^(all-|reduce-scatter|ragged-all|collective-|send|recv)")
_ACROSS = re.compile(r"\b(channel_id|replica_groups|source_target_pairs)=")


def collectives(hlo: str) -> list[Collective]:
    """What the program of one device exchanges with others; by name, or by saying with which devices."""
    instructions = [found for found in map(_INSTRUCTION.match, hlo.splitlines()) if found]
    shapes = {found[1]: [_elements(shape) for shape in _SHAPE.findall(found[2])] for found in instructions}
    return [
        (operation, [*shapes[name], *[n for operand in _operands(rest) for n in shapes[operand]]])
        for name, _, operation, rest in (found.groups() for found in instructions)
        if _EXCHANGES.match(operation) or _ACROSS.search(rest)
    ]


def _operands(rest: str) -> list[str]:
    return re.findall(r"%[\w.-]+", rest.partition(")")[0])


def _elements(extents: str) -> int:
    return prod(int(n) for n in extents.split(",") if n)


_RESHAPE = re.compile(r"stablehlo\.(?:dynamic_)?reshape .*\(tensor<([^>]*)>[^>]*\) -> tensor<([^>]*)>")


def reshapes(stablehlo: str) -> list[int]:
    """Sizes of what is reshaped; taking axes of one element in or out moves nothing between devices."""
    found = [[shape.split("x")[:-1] for shape in pair] for pair in _RESHAPE.findall(stablehlo)]
    real = [old for old, new in found if [n for n in old if n != "1"] != [n for n in new if n != "1"]]
    return [prod(map(int, old)) for old in real]


@dataclass
class Run:
    """What was seen of one scenario."""

    problem: str
    names: tuple[str, ...]
    steps: list[Record] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    reshapes: list[int] = field(default_factory=list)  # sizes of what the program reshapes
    misplaced: list[str] = field(default_factory=list)  # what does not lie where it should
    compilations: list[int] = field(default_factory=list)  # for the state, and for every step

    def read(self, lowered: Any, program: Any) -> None:
        self.collectives, self.reshapes = collectives(program.as_text()), reshapes(lowered.as_text())


_compiled = [0]


def _count(event: str, duration: float, **_: Any) -> None:
    _compiled[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def counted(run: Run, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives; how many programs were compiled for it is noted."""
    before = _compiled[0]
    result = jax.block_until_ready(function(*arguments))
    run.compilations.append(_compiled[0] - before)
    return result


# Steps


def make_optimizer(problem: Problem, specs: Specs | None = None) -> MagmaTransformation:
    return by_rule(
        RATE,
        problem.rule,
        problem.base,
        seed=SEED,
        block_axes=lambda name, leaf: AXES[name],
        specs=None if specs is None else lambda name, leaf: specs[name],
        float32_updates=problem.way == "update",
    )


def take(problem: Problem, optimizer: MagmaTransformation, params: Any, grads: Any, state: MagmaState) -> Trees:
    """A step and what it saw."""
    seen = optimizer.alignment(grads, state, params)
    if problem.way == "step":
        return *optimizer.step(params, grads, state), seen
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, seen


def observe(params: Any, state: MagmaState, seen: dict[str, Alignment]) -> Record:
    found: dict[str, Any] = {field: getattr(state, field) for field in ("count", "mu_power", "nu_power")}
    for name, param in params.items():
        found[f"{name}/param"] = param
        found |= {f"{name}/{field}": (getattr(state, field) or {}).get(name) for field in ("mu", "nu", "score")}
    for name, one in seen.items():
        found |= {f"{name}/seen {field}": x for field, x in one._asdict().items()}
    return {key: np.array(x) for key, x in found.items() if x is not None}  # not a view, which nobody could donate


class Setting:
    """Parameters, gradients and an optimizer for one problem, spread as a layout says."""

    def __init__(self, problem: str, kind: AxisType, layout: Layout, names: tuple[str, ...]) -> None:
        self.problem = PROBLEMS[problem]
        self.run = Run(problem, names)
        self.mesh = layout.make_mesh(kind)
        self.specs = layout.specs(names)
        self.params = self.place({name: start(self.problem, name) for name in names})
        self.grads = [
            self.place({name: gradient(self.problem, name, step) for name in names}) for step in range(1, STEPS + 1)
        ]
        self.optimizer = make_optimizer(self.problem)
        self.take = partial(take, self.problem, self.optimizer)
        self.state_specs, self.seen_specs = self._specs_of_state()
        self.placements = self.shardings((self.specs, self.state_specs, self.seen_specs))

    def shardings(self, specs: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))

    def place(self, tree: Mapping[str, Any], specs: Specs | None = None) -> dict[str, jax.Array]:
        return jax.device_put(dict(tree), self.shardings(specs or self.specs))

    def _specs_of_state(self) -> tuple[MagmaState, dict[str, Alignment]]:
        """Of the state and of what is seen: moments lie like the parameters, scores like the blocks."""
        shapes = jax.eval_shape(self.optimizer.init, {name: np.asarray(x) for name, x in self.params.items()})
        masked = [name for name in self.specs if AXES[name] is not None]
        blocks = {}
        for name in masked:
            entries = [*self.specs[name], *[None] * len(ALL[name][0])]
            blocks[name] = P(*[entries[axis] for axis in AXES[name] or ()])

        def where_there(tree: Any, specs: Specs) -> Any:
            return tree if tree is None else {name: x if x is None else specs[name] for name, x in tree.items()}

        moments = [where_there(tree, self.specs) for tree in (shapes.mu, shapes.nu)]
        powers = [x if x is None else P() for x in (shapes.mu_power, shapes.nu_power)]
        state = MagmaState(P(), *moments, *powers, where_there(shapes.score, blocks))
        if not self.problem.rule.uses_score:
            return state, {name: Alignment(None, None, blocks[name], None) for name in masked}
        return state, {name: Alignment(*[blocks[name]] * 3, P(None, *blocks[name])) for name in masked}

    def placed_state(self) -> MagmaState:
        """Made where it belongs, from shapes alone."""
        shapes = jax.eval_shape(self.optimizer.init, self.params)
        placements = jax.tree.map(lambda _, sharding: sharding, shapes, self.placements[1])
        return jax.jit(self.optimizer.init, out_shardings=placements)(self.params)

    def check_places(self, tree: Any, placements: Any) -> None:
        """Note what does not lie where it should. What is kept, all devices know: that may lie anywhere."""
        for (path, x), sharding in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(placements), strict=True
        ):
            name = jax.tree_util.keystr(path)
            if not name.endswith(".keep") and not x.sharding.is_equivalent_to(sharding, x.ndim):
                self.run.misplaced.append(f"{name}: {x.sharding}, not {sharding.spec}")

    def look(self, trees: Trees) -> None:
        """Note what a step gave, and where it lies."""
        self.run.steps.append(observe(*trees))
        self.check_places(trees, self.placements)

    def shard_mapped(self, function: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
        """``function`` of the parameters and of what the specs are of, in parts; it gives what a step gives."""
        out = self.specs, self.state_specs, self.seen_specs
        return jax.shard_map(function, mesh=self.mesh, in_specs=(self.specs, *specs), out_specs=out)

    def take_part(self) -> Callable[..., Trees]:
        """A step for parts."""
        return partial(take, self.problem, make_optimizer(self.problem, self.specs))


# Scenarios: each gives what it saw


def run_program(setting: Setting, function: Callable[..., Trees], **options: Any) -> Run:
    """One program for all steps: it would refuse a state that lies elsewhere than that of the first."""
    params, state = setting.params, setting.placed_state()
    lowered = jax.jit(function, **options).lower(params, setting.grads[0], state)
    program = lowered.compile()
    setting.run.read(lowered, program)
    for grads in setting.grads:
        params, state, seen = program(params, grads, state)
        setting.look((params, state, seen))
    return setting.run


def run_one_device(problem: str, names: tuple[str, ...]) -> Run:
    """All on the first device."""
    setting = Setting(problem, AxisType.Auto, Layout((1,), ((None, None),)), names)
    return run_program(setting, setting.take)


def run_jit(kind: AxisType, problem: str, layout: Layout, names: tuple[str, ...]) -> Run:
    """Arrays are spread, and the compiler or the types say the rest."""
    setting = Setting(problem, kind, layout, names)
    with jax.set_mesh(setting.mesh):
        return run_program(setting, setting.take)


def run_shard_map(problem: str, layout: Layout, names: tuple[str, ...]) -> Run:
    """A step sees parts."""
    setting = Setting(problem, AxisType.Auto, layout, names)
    return run_program(setting, setting.shard_mapped(setting.take_part(), setting.specs, setting.state_specs))


MODES: dict[str, Callable[[str, Layout, tuple[str, ...]], Run]] = {
    "auto": partial(run_jit, AxisType.Auto),
    "explicit": partial(run_jit, AxisType.Explicit),
    "shard_map": run_shard_map,
}


def run_gradients_elsewhere(problem: str, names: tuple[str, ...]) -> Run:
    """Gradients are spread in other ways than parameters; unless told, moments would lie like gradients then."""
    setting = Setting(problem, AxisType.Auto, SQUARE, names)
    elsewhere = Layout(SQUARE.mesh, (("y", "x"), (None, None), (None, ("x", "y")))).specs(names)
    setting.grads = [setting.place(grads, elsewhere) for grads in setting.grads]
    return run_program(setting, setting.take, out_shardings=setting.placements)


def run_uneven(problem: str, names: tuple[str, ...]) -> Run:
    """Inside a program an array may be spread unevenly; what goes in and comes out is whole here."""
    setting = Setting(problem, AxisType.Auto, Layout((4, 2), ((None, None),)), names)
    spread = setting.shardings(SQUARE.specs(names))

    def function(params: Any, grads: Any, state: MagmaState) -> Trees:
        return setting.take(*[jax.lax.with_sharding_constraint(tree, spread) for tree in (params, grads)], state)

    return run_program(setting, function, out_shardings=setting.placements)


def run_data_parallel(problem: str, names: tuple[str, ...]) -> Run:
    """Parameters are whole on every device, and gradients are means over what each has; there is nothing to say."""
    setting = Setting(problem, AxisType.Auto, Layout((8,), ((None, None),)), names)
    shares = jnp.asarray([2, 0, 1, 1, 3, 0, 0, 1], jnp.float32)  # of the mean
    spread = NamedSharding(setting.mesh, P("x"))

    def share(g: jax.Array) -> jax.Array:
        return jax.device_put(g * shares.reshape(-1, *[1] * g.ndim), spread)

    def loss(params: Any, own: Any) -> jax.Array:
        return sum(jnp.sum(params[name] * own[name][0]) for name in names) / DEVICES

    def function(params: Any, own: Any, state: MagmaState) -> Trees:
        return setting.take(params, jax.grad(lambda p: jax.lax.psum(loss(p, own), "x"))(params), state)

    setting.grads = [{name: share(np.asarray(g)) for name, g in grads.items()} for grads in setting.grads]
    return run_program(setting, setting.shard_mapped(function, P("x"), setting.state_specs))


def run_scan(mode: str, problem: str, names: tuple[str, ...]) -> Run:
    """All steps in one program."""
    setting = Setting(problem, AxisType.Explicit if mode == "explicit" else AxisType.Auto, SQUARE, names)
    one = setting.take_part() if mode == "shard_map" else setting.take

    def all_steps(params: Any, grads: Any, state: MagmaState) -> Any:
        def body(carry: Any, grads: Any) -> Any:
            trees = one(carry[0], grads, carry[1])
            return trees[:2], trees

        return jax.lax.scan(body, (params, state), grads)[1]

    function = all_steps
    stacked = {name: P(None, *spec) for name, spec in setting.specs.items()}
    if mode == "shard_map":
        out = setting.specs, setting.state_specs, setting.seen_specs
        out = jax.tree.map(lambda spec: P(None, *spec), out, is_leaf=lambda x: isinstance(x, P))
        function = jax.shard_map(
            all_steps, mesh=setting.mesh, in_specs=(setting.specs, stacked, setting.state_specs), out_specs=out
        )
    with jax.set_mesh(setting.mesh):
        grads = {name: np.stack([np.asarray(grads[name]) for grads in setting.grads]) for name in names}
        lowered = jax.jit(function).lower(setting.params, setting.place(grads, stacked), setting.placed_state())
        program = lowered.compile()
        seen = jax.tree.map(np.asarray, program(setting.params, setting.place(grads, stacked), setting.placed_state()))
    setting.run.read(lowered, program)
    setting.run.steps = [observe(*jax.tree.map(lambda x, i=i: x[i], seen)) for i in range(STEPS)]
    return setting.run


def run_donated(mode: str, problem: str, names: tuple[str, ...]) -> Run:
    """Parameters and state give their memory away; a warning that they cannot would be an error."""
    setting = Setting(problem, AxisType.Explicit if mode == "explicit" else AxisType.Auto, SQUARE, names)
    function = setting.take
    if mode == "shard_map":
        function = setting.shard_mapped(setting.take_part(), setting.specs, setting.state_specs)
    with jax.set_mesh(setting.mesh):
        step = jax.jit(function, donate_argnums=(0, 2))
        params, state = setting.params, setting.placed_state()
        for grads in setting.grads:
            old = jax.tree_util.tree_leaves_with_path((params, state))
            params, state, seen = counted(setting.run, step, params, grads, state)
            setting.look((params, state, seen))
            setting.run.misplaced += [
                f"{jax.tree_util.keystr(path)} is still there" for path, x in old if not x.is_deleted()
            ]
    return setting.run


def run_init(kind: AxisType, how: str, problem: str, names: tuple[str, ...]) -> Run:
    """States that are made in several ways: where do they lie, and how often is a step compiled?"""
    setting = Setting(problem, kind, SQUARE, names)
    run, params, init = setting.run, setting.params, setting.optimizer.init
    with jax.set_mesh(setting.mesh):
        make = {"jit": jax.jit(init), "eager": init, "shapes": lambda params: setting.placed_state()}[how]
        state = counted(run, make, params)
        setting.check_places(state, setting.placements[1])
        step = jax.jit(setting.take)
        for grads in setting.grads:
            types = jax.tree.map(jax.typeof, state)  # with the shardings, if they are explicit
            params, state, seen = counted(run, step, params, grads, state)
            setting.look((params, state, seen))
            if jax.tree.map(jax.typeof, state) != types:
                run.misplaced.append("a step gives a state of other types")
    return run


def run_init_in_parts(problem: str, names: tuple[str, ...]) -> Run:
    """The state is made inside of shard_map."""
    setting = Setting(problem, AxisType.Auto, SQUARE, names)
    optimizer = make_optimizer(setting.problem, setting.specs)
    init = jax.shard_map(optimizer.init, mesh=setting.mesh, in_specs=(setting.specs,), out_specs=setting.state_specs)
    state = jax.jit(init)(setting.params)
    setting.check_places(state, setting.placements[1])
    setting.placed_state = lambda: state
    return run_program(setting, setting.shard_mapped(setting.take_part(), setting.specs, setting.state_specs))


def run_step_alone(problem: str, names: tuple[str, ...]) -> Run:
    """Without `alignment`; only the program is of interest."""
    setting = Setting(problem, AxisType.Auto, SQUARE, names)
    lowered = jax.jit(setting.optimizer.step).lower(setting.params, setting.grads[0], setting.placed_state())
    setting.run.read(lowered, lowered.compile())
    return setting.run


def run_offender(function: Callable[[jax.Array], jax.Array]) -> Run:
    """A program that does what no step may do to a parameter."""
    setting = Setting("adamw", AxisType.Auto, SQUARE, ROWS)
    whole = NamedSharding(setting.mesh, P())
    lowered = jax.jit(function, out_shardings=whole).lower(setting.params["rows"])
    setting.run.read(lowered, lowered.compile())
    return setting.run


STEPPED = [name for name in PROBLEMS if name != "averaged"]


def _matrix() -> Iterator[tuple[str, Callable[[], Run]]]:
    """Every mode with every layout, each time another problem and other leaves."""
    for i, (mode, run) in enumerate(MODES.items()):
        for j, (layout, where) in enumerate(LAYOUTS.items()):
            problem, names = STEPPED[(j + 3 * i) % len(STEPPED)], PAIRS[(j + 2 * i) % len(PAIRS)]
            yield f"{mode} {layout} {problem}", partial(run, problem, where, names)


INITS = ("jit", "eager", "shapes")
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
WATCHED: dict[str, Callable[[], Run]] = {
    **dict(_matrix()),
    "one device": partial(run_one_device, "adamw", SEVERAL[:2]),
    **{f"{mode} mixed": partial(run, "adamw", MIXED, SEVERAL) for mode, run in MODES.items()},
    **{f"{mode} element-wise": partial(run, "adam", SQUARE, ("crossed", "bias")) for mode, run in MODES.items()},
    **{f"{mode} scan": partial(run_scan, mode, "bfloat16", ROWS) for mode in MODES},
    "shard_map init": partial(run_init_in_parts, "adamw", SEVERAL[:2]),
}
"""Scenarios whose program has nothing to exchange but what the alignment of blocks needs."""

SCENARIOS: dict[str, Callable[[], Run]] = {
    **WATCHED,
    **{f"{mode} donated": partial(run_donated, mode, "adamw", ROWS) for mode in MODES},
    **{
        f"{mode} init {how}": partial(run_init, kind, how, "bfloat16", ROWS)
        for mode, kind in KINDS.items()
        for how in INITS
    },
    "auto gradients elsewhere": partial(run_gradients_elsewhere, "adamw", SEVERAL[:2]),
    "auto uneven": partial(run_uneven, "rmsprop", tuple(UNEVEN)),
    "shard_map data parallel": partial(run_data_parallel, "averaged", SEVERAL[:2]),
}
PROGRAMS: dict[str, Callable[[], Run]] = {
    "with alignment": partial(run_jit, AxisType.Auto, "adamw", SQUARE, ROWS),
    "step alone": partial(run_step_alone, "adamw", ROWS),
    "gathers": partial(run_offender, lambda x: x),
    "reshapes": partial(run_offender, lambda x: x.reshape(-1)),
}


def solve(name: str) -> Run:
    """What a scenario saw."""
    return (SCENARIOS | PROGRAMS)[name]()
