"""Typed access to a Hugging Face config: a field that cannot be used is named, with the file it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping

from plimsoll.core.errors import InputError

LARGEST_SIZE = 10_000_000
LARGEST_LAYERS = 2_000
LARGEST_POSITION = 2**40


class Fields:
    """A config's fields, read by name.

    Args:
        data: the config as parsed.
        origin: what the user knows it as (a path, a catalogue id), for messages.
    """

    def __init__(self, data: Mapping[str, object], origin: str) -> None:
        self._data, self.origin = data, origin

    def has(self, name: str) -> bool:
        """Whether the field is there with a value other than null."""
        return self._data.get(name) is not None

    def fail(self, name: str, value: object, remedy: str) -> InputError:
        """The error for a field of this config, to be raised."""
        return InputError(f"{self.origin}, field {name}", value, remedy)

    def size(self, *names: str, default: int | None = None, least: int = 1, most: int = LARGEST_SIZE) -> int:
        """A whole number under the first of `names` that is there, else `default`.

        Raises:
            InputError: it is missing without a default, no whole number, or outside `least` to `most`.
        """
        for name in names:
            if self.has(name):
                return self._checked(name, self._data[name], least, most)
        if default is None:
            raise self.fail(names[0], None, "the config must hold this field")
        return default

    def optional_size(self, *names: str, least: int = 1, most: int = LARGEST_SIZE) -> int | None:
        """Like `size`, None where no field is there."""
        return self.size(*names, least=least, most=most) if any(self.has(name) for name in names) else None

    def layers(self, *names: str) -> int:
        """The number of layers."""
        return self.size(*(names or ("num_hidden_layers",)), most=LARGEST_LAYERS)

    def _checked(self, name: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(name, value, "write a whole number")
        if isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
            raise self.fail(name, value, "write a whole number")
        if not least <= value <= most:
            raise self.fail(name, value, f"write a whole number from {least} to {most}")
        return int(value)

    def number(self, name: str) -> float:
        """A finite positive number."""
        value = self._data.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST_SIZE:
            raise self.fail(name, value, "write a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, value, "write true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self._data.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fail(name, value, "write a string")
        return value

    def texts(self, name: str, count: int | None = None) -> tuple[str, ...] | None:
        """A list of strings, of length `count` where that is given; None where the field is missing."""
        value = self._data.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(name, value, "write a list of strings")
        if count is not None and len(value) != count:
            raise self.fail(name, value, f"write one entry for each of the {count} layers, there are {len(value)}")
        return tuple(value)

    def sizes(self, name: str, *, least: int = 0, most: int = LARGEST_SIZE) -> tuple[int, ...] | None:
        """A list of whole numbers; None where the field is missing."""
        value = self._data.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.fail(name, value, "write a list of whole numbers")
        return tuple(self._checked(name, item, least, most) for item in value)

    def same_size(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Like `size`, but the value may also be listed once for each layer, as long as all are equal."""
        for name in names:
            listed = self._data.get(name)
            if isinstance(listed, list):
                values = self.sizes(name, least=least) or ()
                if len(set(values)) != 1:
                    raise self.fail(name, values[:4], "layers that differ in this are not read here")
                return values[0]
            if self.has(name):
                break
        return self.size(*names, default=default, least=least)

    def is_text(self, name: str) -> bool:
        """Whether the field holds a string."""
        return isinstance(self._data.get(name), str)

    def part(self, name: str) -> Fields | None:
        """A nested object; None where it is missing."""
        value = self._data.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(name, value, "write an object")
        return Fields(value, f"{self.origin}, {name}")

    def parts(self, name: str, count: int) -> list[Fields]:
        """A list of `count` nested objects."""
        value = self._data.get(name)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(item, Mapping) for item in value):
            raise self.fail(name, value, f"write a list of {count} objects, one for each layer")
        return [Fields(item, f"{self.origin}, {name}[{place}]") for place, item in enumerate(value)]

    def with_defaults(self, defaults: Mapping[str, object]) -> Fields:
        """The same fields, with a family's own defaults for those that are missing."""
        present = {name: value for name, value in self._data.items() if value is not None}
        return Fields({**defaults, **present}, self.origin)

    def first_part(self) -> Fields | None:
        """The first nested object, whatever its name; None where there is none."""
        for name, value in self._data.items():
            if isinstance(value, Mapping):
                return Fields(value, f"{self.origin}, {name}")
        return None
