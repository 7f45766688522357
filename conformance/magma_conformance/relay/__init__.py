"""The relay: frameworks train one model in turn, each in its own process (docs/relay.md).

Read `plan`, `folder`, `leg`, then the three legs. Only the legs and their models import a framework.
"""
