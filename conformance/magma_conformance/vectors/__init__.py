"""Questions with their answers, pinned: what any implementation must give, whatever language it is written in."""

from magma_conformance.vectors.files import FILES, FOLDER, JSON_FILES, KNOWN_ANSWERS, PARTS, Vector, load

__all__ = ["FILES", "FOLDER", "JSON_FILES", "KNOWN_ANSWERS", "PARTS", "Vector", "load"]
