"""Names of arguments that users of optax pass and ours do not have, each with its remedy."""

_NUMBERS = {
    "momentum": "it belongs to the base, as in base=magma_core.SGD(momentum=0.8)",
    "nesterov": "it belongs to the base, as in base=magma_core.SGD(nesterov=True)",
    "eps_root": "no base here adds a number under the root",
    "mu_dtype": "moments are float32 always",
    "accumulator_dtype": "moments are float32 always",
}
_SCORES = "it belongs to rules with scores: magma, or by_rule with rule=magma_core.damping(…)"
_RULE = {
    "rule": "by_rule takes a rule",
    "p": "it belongs to the rule, as in rule=magma_core.magma(p=0.5)",
    "decay": "it belongs to the rule, as in by_rule(…, rule=magma_core.magma(decay='dense'))",
    **dict.fromkeys(("tau", "ema", "initial_score", "cosine_momentum"), _SCORES),
}

ARGUMENTS = {
    **_NUMBERS,
    **_RULE,
    "mask": "which leaves decay says weight_decay_mask; which are masked, block_axes",
    "learning_rate": "scale by it in a chain, with optax.scale_by_learning_rate, or use magma or skip_update",
}
"""Remedies for arguments that an optimizer does not have."""

WRAP_ARGUMENTS = {
    **ARGUMENTS,
    **dict.fromkeys(
        ("learning_rate", "base", "b1", "b2", "eps", "weight_decay", "weight_decay_mask", *_NUMBERS),
        "give it to the optimizer that is wrapped",
    ),
    "decay": "weight decay is part of the wrapped optimizer's update, masked with it",
}
"""Remedies for arguments that wrapping does not have."""
