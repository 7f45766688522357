"""A model that is trained by one framework after the other, each in a process of its own: docs/relay.md.

Read `plan`, `folder`, `leg`, then the three legs. Nothing here imports a framework, but the legs and their models.
"""
