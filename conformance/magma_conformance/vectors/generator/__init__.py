"""How the vectors are made: inputs drawn and designed, answers by the oracle, flags by planting each hazard in it."""
