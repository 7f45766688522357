"""The commands of ``magma-conformance``, one file each."""
