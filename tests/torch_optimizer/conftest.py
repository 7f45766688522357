"""These tests are about torch's optimizers: without torch there is nothing to test."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["*"]
