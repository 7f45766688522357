"""Makes the vectors: drawn and designed inputs, the oracle's answers, and flags from planting hazards in the oracle."""
