"""Known-answer vectors: questions with pinned answers, for implementations in any language."""

from magma_conformance.vectors.files import FILES, FOLDER, JSON_FILES, KNOWN_ANSWERS, PARTS, Vector, load

__all__ = ["FILES", "FOLDER", "JSON_FILES", "KNOWN_ANSWERS", "PARTS", "Vector", "load"]
