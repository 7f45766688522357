"""A step over all parameters: batches advance, all blocks are decided on at once, batches move."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, cast

import torch
from magma_numpy import namespace as numpy_namespace
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from magma_core import Alignment, Rule, alignment
from magma_core.config import LR_SCALE
from magma_core.hyperparameters import masked_rate, rule_numbers
from magma_core.keep import BlockWords
from magma_core.namespace import Namespace
from magma_core.numerics import Real, real
from magma_core.rule import Decision, decide
from magma_torch import namespace
from magma_torch.engine.batch import STACKED, Batch, Scratch
from magma_torch.engine.memory import History, Slot
from magma_torch.engine.overlap import check_memory
from magma_torch.engine.rows import Layout
from magma_torch.engine.seen import Seen
from magma_torch.engine.sharding import ReducedBatch, Reduction, Sharding, is_dtensor, local, spread_like
from magma_torch.gpu.available import check_not_captured, triton_missing
from magma_torch.options import Options, check_parameter

_XP, _NUMPY = cast(Namespace, namespace), cast(Namespace, numpy_namespace)


class Engine:
    """The batches of an optimizer's parameters, made anew when anything about these changes.

    Args:
        make: what makes them, called as `Batch` is.
        former: the engine of the same optimizer before this one.
    """

    def __init__(self, make: Callable[..., Batch] = Batch, former: "Engine | None" = None) -> None:
        self._make = make
        self.batches: list[Batch] = []
        self.launchers: list[Any] = []  # of other batches, those that magma_torch.gpu steps
        self._fake = False  # parameters have shapes and no values
        self._signature: object = None
        self._slots: Sequence[Slot] = ()
        self._seen: Seen | None = None  # of the last step, if the one before had the same parameters
        # launchers of before, on whose tables CUDA graphs work
        self._captured: list[Any] = [] if former is None else former.captured()
        self._places: dict[int, list[int]] = {}  # where the parameters of each batch are among all
        self._words: dict[tuple[int, ...], BlockWords] = {}
        self._scratch = Scratch()
        self._split: list[int] = []  # the batches with measured blocks that are split over ranks
        self._reduction = Reduction([], torch.device("cpu"), {})  # of these
        self._process_groups: dict[tuple[int, ...], Any] = {}

    def prepare(self, configured: Sequence[Options], slots: Sequence[Slot], grads: Sequence[Tensor]) -> None:
        """Make the state of the parameters in ``slots`` where there is none; arguments are those of `step`."""
        _check_modes(slots)
        if self._seen is not None and self._seen.again(configured, slots, grads):
            return
        self._seen = None
        if any(grad.layout is not torch.strided for grad in grads):
            for slot, grad in zip(slots, grads, strict=True):
                check_gradient(slot.entry.name, grad)
        signature = _sign(configured, slots, grads)
        if self._signature is None or self._signature != signature:
            check_memory((slot.entry.name, slot.entry.param) for slot in slots)
            for device in {slot.entry.param.device for slot in slots}:
                check_not_captured(device)
            places = {slot.entry.name: i for i, slot in enumerate(slots)}
            self._fake = any(isinstance(slot.entry.param, FakeTensor) for slot in slots)
            batches = list(_make_batches(self._make, configured, slots, grads, self._scratch))
            self._words = {}
            self.batches = [batch for batch in batches if not batch.launched]
            self._captured = self.captured()
            self.launchers = _make_launchers([batch for batch in batches if batch.launched])
            self._places = {id(batch): [places[entry.name] for entry in batch.entries] for batch in batches}
            self._plan_reduction()
            self._signature = _sign(configured, slots, grads)  # of the state that there is now
        if slots is self._slots and Seen.possible(slots, grads):
            self._seen = Seen(configured, slots, grads)
        self._slots = slots

    def step(
        self, configured: Sequence[Options], rates: Sequence[Any], slots: Sequence[Slot], grads: Sequence[Tensor]
    ) -> None:
        """One step of the parameters in ``slots``; what is wrong with them raises before anything is changed.

        Where they are fake (torch's FakeTensorMode), the state is made, and there is nothing to compute.

        Args:
            configured: what each group asks for.
            rates: the learning rate of each group, without its ``lr_scale``: a number or a tensor.
            slots: the parameters.
            grads: their gradients.
        """
        self.prepare(configured, slots, grads)
        if self._fake:
            return
        rates = [_rate(lr, options.lr_scale) for lr, options in zip(rates, configured, strict=True)]
        gradients = self._spread(grads, self.batches)
        launched = [self._spread(grads, launcher.batches) for launcher in self.launchers]
        for launcher, own in zip(self.launchers, launched, strict=True):
            launcher.step(configured, rates, list(itertools.chain.from_iterable(own)), self._seen)
        cache: dict[Any, Any] = {}
        for batch in self.batches:
            batch.options = configured[batch.group]
            batch.begin(rates[batch.group], cache)
        sums = self._advance(gradients)
        by_rule: dict[Rule, list[int]] = {}
        for i, batch in enumerate(self.batches):
            if batch.options.masked:
                by_rule.setdefault(batch.options.rule, []).append(i)
            else:
                batch.move(gradients[i], None, batch.rate)
        for rule, members in by_rule.items():
            decision = self._decide(rule, members, [sums[i] for i in members])
            self._carry_out(rule, members, decision, gradients, sums)
        for batch in self.batches:
            batch.finish()

    @property
    def all_batches(self) -> list[Batch]:
        """Those that are stepped here, and those of launchers."""
        return [*self.batches, *(batch for launcher in self.launchers for batch in launcher.batches)]

    def captured(self) -> list[Any]:
        """The launchers whose memory is part of CUDA graphs, and must not become anything else's."""
        return self._captured + [launcher for launcher in self.launchers if launcher.captured]

    def alignment(self) -> dict[str, Alignment]:
        """Of the blocks of each masked parameter, by name."""
        found: dict[str, Alignment] = {}
        for launcher in self.launchers:
            launcher.report()
        for batch in self.all_batches:
            if batch.keep is None:
                continue
            score = None if batch.memory.scores is None else batch.memory.scores.clone()
            for i, entry in enumerate(batch.entries):
                own = slice(i * batch.blocks.count, (i + 1) * batch.blocks.count)
                shape = batch.blocks.block_shape
                found[entry.name] = Alignment(
                    cosine=None if batch.cosine is None else batch.cosine[own].view(shape),
                    score=None if score is None else score[own].view(shape),
                    keep=batch.keep[own].view(shape),
                    sums=None if batch.sums is None else batch.sums[:, own].reshape(3, *shape),
                )
        return found

    def _spread(self, grads: Sequence[Tensor], batches: Sequence[Batch]) -> list[list[Tensor]]:
        """The gradients of each batch."""
        found = []
        for batch in batches:
            own = [grads[i] for i in self._places[id(batch)]]
            if self._seen is None:
                own = [x if type(x) is Tensor and not batch.sharding else spread_like(x, batch.sharding) for x in own]
            found.append(own)
        return found

    def _plan_reduction(self) -> None:
        self._split = [i for i, batch in enumerate(self.batches) if batch.measured and batch.split]
        batches = [self.batches[i] for i in self._split]
        members = [
            ReducedBatch(cast(Sharding, batch.sharding), self._places[id(batch)], batch.blocks.count)
            for batch in batches
        ]
        device = batches[0].device if batches else torch.device("cpu")
        self._reduction = Reduction(members, device, self._process_groups)

    def _advance(self, gradients: Sequence[Sequence[Tensor]]) -> list[Tensor | None]:
        """Moments of all and sums of those that are measured; two collectives, if any is spread over ranks."""
        sums: list[Tensor | None] = [None] * len(self.batches)
        peaks: dict[int, Tensor] = {}
        for i, (batch, grads) in enumerate(zip(self.batches, gradients, strict=True)):
            found = batch.accumulate(grads)
            if found is None:
                continue
            if i in self._split:
                peaks[i] = found
            else:
                sums[i] = _finish(found, batch.measure(grads, found))
        whole = self._reduction.max(list(peaks.values()))
        totals = [self.batches[i].measure(gradients[i], peak) for i, peak in zip(self._split, whole, strict=True)]
        for i, peak, total in zip(self._split, whole, self._reduction.sum(totals), strict=True):
            sums[i] = _finish(peak, total)
        return sums

    def _decide(self, rule: Rule, members: Sequence[int], sums: Sequence[Tensor | None]) -> Decision:
        batches = [self.batches[i] for i in members]
        words = self._words.get(tuple(members))
        if words is None:
            words = self._words[tuple(members)] = _join([batch.words for batch in batches])
        steps, rates = {batch.step for batch in batches}, {id(batch.rate): batch.rate for batch in batches}
        counts = torch.tensor([batch.count for batch in batches])
        step: Any = steps.pop() if len(steps) == 1 else None
        if step is None:
            step = torch.tensor([batch.step for batch in batches]).repeat_interleave(counts).to(batches[0].device)
        (rate,) = rates.values() if len(rates) == 1 else (None,)
        if rate is None:
            rate = torch.stack([batch.rate for batch in batches]).repeat_interleave(counts.to(batches[0].device))
        all_sums = scores = None
        if rule.uses_score:
            all_sums = torch.cat([cast(Tensor, x) for x in sums], dim=1)
            scores = torch.cat([cast(Tensor, batch.memory.scores) for batch in batches])
        return decide(rule, rule_numbers(rule), words, all_sums, scores, step, Real(rate, xp=_XP))

    def _carry_out(
        self,
        rule: Rule,
        members: Sequence[int],
        decision: Decision,
        gradients: Sequence[Sequence[Tensor]],
        sums: Sequence[Tensor | None],
    ) -> None:
        start = 0
        scale = decision.scale.array.expand(decision.keep.shape)
        for i in members:
            batch = self.batches[i]
            batch.sums = sums[i]
            part = slice(start, start := start + batch.count)
            batch.keep = decision.keep[part]
            if rule.uses_score:
                batch.cosine = cast(Tensor, decision.cosine)[part]
                cast(Tensor, batch.memory.scores).copy_(cast(Tensor, decision.score)[part])
            batch.move(gradients[i], batch.keep, scale[part])


def _finish(peaks: Tensor, sums: Tensor) -> Tensor:
    finite = alignment.finite(peaks, xp=_XP)
    return torch.stack(list(alignment.finite_sums(list(sums), finite[0], finite[1], xp=_XP)))


def _make_batches(
    make: Callable[..., Batch],
    configured: Sequence[Options],
    slots: Sequence[Slot],
    grads: Sequence[Tensor],
    scratch: Scratch,
) -> Iterator[Batch]:
    """Small parameters of one group, layout and history in stacks, all others by themselves."""
    stacks: dict[object, tuple[torch.dtype, Layout, Sharding | None, list[Slot]]] = {}
    for slot, grad in zip(slots, grads, strict=True):
        group, param = configured[slot.group], local(slot.entry.param)
        check_parameter(slot.entry.name, slot.entry.param, group)
        sharding = Sharding.of(slot.entry.param) if is_dtensor(slot.entry.param) else None
        layout = Layout.of(param, group.block_axes if group.masked else ())
        key: object = id(slot)
        if layout.size <= STACKED and layout.flat and param.is_contiguous():
            past = History.of(slot.entry.state, group)
            key = slot.group, layout, sharding, past, param.dtype, grad.dtype, param.device
        stacks.setdefault(key, (grad.dtype, layout, sharding, []))[3].append(slot)
    for dtype, layout, sharding, members in stacks.values():
        number, most = members[0].group, max(1, 4 * STACKED // max(1, layout.size))
        for start in range(0, len(members), most):
            entries = [slot.entry for slot in members[start : start + most]]
            yield make(number, configured[number], entries, dtype, layout, sharding, scratch)


def _make_launchers(batches: Sequence[Batch]) -> list[Any]:
    """One for each device; only here is Triton imported."""
    by_device: dict[torch.device, list[Batch]] = {}
    for batch in batches:
        by_device.setdefault(batch.device, []).append(batch)
    return [
        import_module(f"magma_torch.{'gpu.launcher' if not triton_missing(device) else 'native'}").Launcher(own)
        for device, own in by_device.items()
    ]


def _join(words: Sequence[BlockWords]) -> BlockWords:
    return BlockWords(*map(torch.cat, zip(*words, strict=True)))


def _rate(lr: Any, lr_scale: float) -> Tensor | float:
    """`masked_rate` as a number, or as a tensor where reading ``lr`` would make the host wait for the device."""
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        return lr if lr_scale == LR_SCALE else _rate_on_device(lr, lr_scale)
    with _NUMPY.scope():
        return float(cast(Any, masked_rate(real(float(lr), xp=_NUMPY), lr_scale).array))


def _rate_on_device(lr: Tensor, lr_scale: float) -> Tensor:
    """The factor is filled in on the device, for nothing can be copied there while a CUDA graph is captured."""
    factor = torch.full((), lr_scale, dtype=torch.float32, device=lr.device)
    return masked_rate(real(lr.detach().reshape(()), xp=_XP).flush(), factor).array


def check_gradient(name: str, grad: Tensor) -> None:
    """Raise RuntimeError if ``grad`` is sparse."""
    if grad.layout is not torch.strided:
        raise RuntimeError(f"the gradient of {name!r} is sparse: use a dense one, as with Embedding(sparse=False)")


def _check_modes(slots: Sequence[Slot]) -> None:
    """Raise RuntimeError if torch computes with shapes alone (FakeTensorMode), but parameters have values."""
    if not any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack()):
        return
    if not all(isinstance(local(slot.entry.param), FakeTensor) for slot in slots):
        raise RuntimeError("a step of real parameters under FakeTensorMode: step outside of it, or make them under it")


def _sign(configured: Sequence[Options], slots: Sequence[Slot], grads: Sequence[Tensor]) -> object:
    """What batches depend on. Identities, because tensors that are equal may be different ones; batches hold on to
    what these are of, so that none is given to another. In columns, for there may be thousands of parameters."""
    params = [local(slot.entry.param) for slot in slots]
    return (
        [options.memory for options in configured],
        [slot.group for slot in slots],
        [slot.entry.name for slot in slots],
        [id(slot.entry.param) for slot in slots],
        [0 if isinstance(param, FakeTensor) else param.data_ptr() for param in params],
        [param.shape for param in params],
        [param.stride() for param in params],
        [param.dtype for param in params],
        [grad.dtype for grad in grads],
        [id(value) for slot in slots for value in slot.entry.state.values()],
    )
