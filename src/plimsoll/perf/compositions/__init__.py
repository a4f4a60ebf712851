"""Optimisations that change what a step costs or what memory holds, on top of any step model.

A composition is one file of this folder, found by name; nothing is registered. `_port` says what such a file holds.
"""

from plimsoll.perf.compositions._port import (
    Choice,
    Composition,
    MemoryEffect,
    Option,
    build_composed,
    combined_memory_effect,
    complete_options,
    list_compositions,
    load_composition,
    parse_compositions,
    parse_step_model,
    prepared,
)

__all__ = [
    "Choice",
    "Composition",
    "MemoryEffect",
    "Option",
    "build_composed",
    "combined_memory_effect",
    "complete_options",
    "list_compositions",
    "load_composition",
    "parse_compositions",
    "parse_step_model",
    "prepared",
]
