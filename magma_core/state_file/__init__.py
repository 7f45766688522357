"""The portable state: one file that every framework reads and writes (docs/state.md)."""

from magma_core.state_file.mapping import FileAxes, FileNames, LoadOptions, SaveOptions, from_file, to_file
from magma_core.state_file.matching import History, shared_history
from magma_core.state_file.saved import Saved
from magma_core.state_file.state_file import read_state, write_state
from magma_core.state_file.tensors import FilePath
from magma_core.state_file.together import together

__all__ = [
    "FileAxes",
    "FileNames",
    "FilePath",
    "History",
    "LoadOptions",
    "SaveOptions",
    "Saved",
    "from_file",
    "read_state",
    "shared_history",
    "to_file",
    "together",
    "write_state",
]
