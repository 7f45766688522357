"""Our implementations: the core on each framework, and each adapter in each of its modes."""
