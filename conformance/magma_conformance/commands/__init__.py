"""The commands of ``magma-conformance``, a file each."""
