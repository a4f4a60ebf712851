"""Language models: one JSON file each in ``data/models``, or any Hugging Face config.json, local or from the hub."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from plimsoll.catalog.architecture import ModelSpec, Quantisation
from plimsoll.catalog.configs import read_config
from plimsoll.core.errors import InputError, UnknownNameError, closest_names

DATA = Path(__file__).parent / "data" / "models"
LARGEST_CONFIG_BYTES = 10 * 2**20
HUB_TIMEOUT_S = 5.0

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# Words of a name that change the values of the weights but not their shapes.
_SAME_SHAPE = frozenset(("instruct", "chat", "hf", "it", "base", "pt", "bf16", "dynamic", "kv", "meta", "quantized"))
# Words that name a quantised copy of the same shape: precision, stored bits per weight.
_QUANTISED: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        **dict.fromkeys(("fp8",), ("fp8", 8.0)),
        **dict.fromkeys(("awq", "gptq", "int4", "w4a16"), ("int4", 4 + 20 / 128)),
        **dict.fromkeys(("int8", "w8a8", "w8a16"), ("int8", 8.0)),
        **dict.fromkeys(("nvfp4", "fp4"), ("fp4", 4 + 8 / 16)),
        **dict.fromkeys(("mxfp4",), ("fp4", 4 + 8 / 32)),
    }
)


@functools.cache
def _entries() -> Mapping[str, Mapping[str, Any]]:
    """The catalogue's files, parsed, by id. They are our own, and a test checks their fields and types."""
    files = sorted(DATA.glob("*.json"))
    return {entry["id"]: entry for entry in (json.loads(file.read_bytes()) for file in files)}


def _plain(name: str) -> str:
    return "".join(ch for ch in name.lower() if ch.isalnum())


def _words(name: str, ignored: Collection[str]) -> tuple[str, list[str]]:
    """A name without its organisation and without the `ignored` words, in plain letters, and the words left out."""
    stem: list[str] = []
    left_out: list[str] = []
    for word in re.split(r"[-_]", name.rpartition("/")[2].lower().replace("quantized.", "quantized-")):
        (left_out if word in ignored else stem).append(word)
    return _plain("".join(stem)), left_out


@functools.cache
def _index() -> Mapping[str, str]:
    """Catalogue ids by every plain name they go under, with and without the organisation; whole names win."""
    index: dict[str, str] = {}
    names = [(name, model_id) for model_id, entry in _entries().items() for name in (model_id, *entry["aliases"])]
    for name, model_id in names:
        index.setdefault(_plain(name), model_id)
        index.setdefault(_plain(name.rpartition("/")[2]), model_id)
    for name, model_id in names:
        stem, _ = _words(name, _SAME_SHAPE)
        index.setdefault(stem, model_id)
    return index


def list_models() -> tuple[str, ...]:
    """The ids of the catalogued models, sorted."""
    return tuple(sorted(_entries(), key=str.lower))


def model_entry(model_id: str) -> Mapping[str, Any]:
    """A catalogue file as it stands: id, aliases, source, date, published figures and config."""
    return _entries()[model_id]


def load_model(name_or_path: str) -> ModelSpec:
    """A model by catalogue id or alias, by the path of a config.json or of its folder, or by hub id.

    Catalogue names are matched without regard to case and punctuation, with or without the organisation, and without
    words that leave the shape alone (``-Instruct``, ``-chat-hf``, ``-it``). A word that names a quantised copy
    (``-FP8``, ``-AWQ``, ``-NVFP4``) gives the same shape with that quantisation, and `ModelSpec.source` says so.

    Raises:
        UnknownNameError: neither the catalogue nor the hub knows the name, or no reader knows the architecture.
        InputError: a config that cannot be read or used; the hub cannot be reached.
    """
    name = name_or_path.strip()
    if not name:
        raise InputError("--model", name_or_path, "write a catalogue name, a hub id or the path of a config.json")
    explicit_path = name.startswith((".", "/", "~")) or name.lower().endswith(".json")
    if not explicit_path:
        spec = _from_catalogue(name)
        if spec is not None:
            return spec
    path = Path(name)
    if explicit_path or _exists(path):
        return _from_path(path)
    if _HUB_ID.fullmatch(name):
        return _from_hub(name)
    raise _unknown(name, "(or write a hub id or the path of a config.json)")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a null in it
        return False


def _from_catalogue(name: str) -> ModelSpec | None:
    """The entry of that name, or None. Whole names win over names with words left out."""
    index = _index()
    for whole in (_plain(name), _plain(name.rpartition("/")[2])):
        if whole in index:
            return _spec_of(index[whole])
    for ignored in (_QUANTISED.keys(), _SAME_SHAPE | _QUANTISED.keys()):
        stem, left_out = _words(name, ignored)
        if stem in index:
            return _variant(_spec_of(index[stem]), left_out)
    return None


def _variant(spec: ModelSpec, words: list[str]) -> ModelSpec:
    """The model of that shape, with the quantisation that words of the name stand for."""
    quantised = [word for word in words if word in _QUANTISED]
    if not quantised:
        if "bf16" not in words or spec.quantisation is None:
            return spec
        note = f"{spec.source} (shape of {spec.id}; plain weights derived from the name)"
        return dataclasses.replace(spec, id=f"{spec.id}-BF16", quantisation=None, source=note)
    word = quantised[-1]
    method, bits = _QUANTISED[word]
    if spec.quantisation is not None and spec.quantisation.method == method:
        return spec
    stored = Quantisation(method=method, bits_per_weight=bits, applies_to="linear", name=word)
    note = f"{spec.source} (shape of {spec.id}; {word} quantisation derived from the name)"
    return dataclasses.replace(spec, id=f"{spec.id}-{word.upper()}", quantisation=stored, source=note)


@functools.cache
def _spec_of(model_id: str) -> ModelSpec:
    """The catalogued model; its file's figures beside what the config reader makes of its config."""
    entry = _entries()[model_id]
    spec = read_config(entry["config"], model_id=model_id, origin=f"catalogue model {model_id}")
    return dataclasses.replace(
        spec,
        published_params=entry["published_params"],
        published_active_params=entry["published_active_params"],
        source=entry["source"],
        date=entry["date"],
        aliases=tuple(entry["aliases"]),
    )


def _from_path(path: Path) -> ModelSpec:
    try:
        path = path.expanduser()
        file = path / "config.json" if path.is_dir() else path
        beside = file.with_name("hf_quant_config.json")
        has_beside = beside.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError("--model", str(path), f"it cannot be opened ({error})") from None
    config = _read_json(file)
    if has_beside and not config.get("quantization_config"):
        config = {**config, "quantization_config": _quantisation_beside(_read_json(beside))}
    spec = read_config(config, model_id=str(path), origin=str(file))
    return dataclasses.replace(spec, source=str(file))


def _quantisation_beside(document: Mapping[str, object]) -> object:
    """ModelOpt writes its quantisation into a file of its own, under this key."""
    return document.get("quantization")


def _read_json(file: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size.

    Raises:
        InputError: no such file, too large, not JSON, not an object.
    """
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError("--model", str(file), "it is no regular file; write the path of a config.json")
        if found.st_size > LARGEST_CONFIG_BYTES:
            raise InputError(
                str(file), f"{found.st_size} bytes", f"a config.json has at most {LARGEST_CONFIG_BYTES} bytes"
            )
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("--model", str(file), f"{reason}; write the path of a config.json or of its folder") from None
    return parse_config(raw, str(file))


def parse_config(raw: bytes, origin: str) -> dict[str, object]:
    """The JSON object that `raw` holds.

    Raises:
        InputError: it is not JSON, or not an object.
    """
    if len(raw) > LARGEST_CONFIG_BYTES:
        raise InputError(origin, f"{len(raw)} bytes", f"a config.json has at most {LARGEST_CONFIG_BYTES} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(origin, raw[:40], f"it is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise InputError(origin, type(document).__name__, "a config.json holds one JSON object")
    return document


def _from_hub(hub_id: str) -> ModelSpec:
    """A model by its config on the Hugging Face hub, or in the hub's local cache where it is there already."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    file = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(file, str):
        try:
            # Asked first because it fails at once without a network, where the download tries for half a minute.
            get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=HUB_TIMEOUT_S)
            file = hf_hub_download(hub_id, "config.json", etag_timeout=HUB_TIMEOUT_S)
        except errors.GatedRepoError:
            hint = "(the hub's repository is gated: log in with `hf auth login`, or give the path of its config.json)"
            raise _unknown(hub_id, hint) from None
        except errors.RepositoryNotFoundError:
            raise _unknown(hub_id, "(the hub has no such public model)") from None
        except errors.EntryNotFoundError:
            raise _unknown(hub_id, "(the hub's repository has no config.json)") from None
        except Exception as error:  # the hub client raises whatever its transport raises
            hint = f"(not in the catalogue, and the hub cannot be reached: {type(error).__name__})"
            raise _unknown(hub_id, hint) from None
    spec = read_config(_read_json(Path(file)), model_id=hub_id, origin=f"config.json of {hub_id}")
    return dataclasses.replace(spec, source=f"https://huggingface.co/{hub_id}/blob/main/config.json")


def _unknown(name: str, hint: str) -> UnknownNameError:
    """The error for a name that stands for no model; names near it are proposed as the user wrote it, with or without
    the organisation. Where none is near, the command that lists them is named instead of some of them.
    """
    known = [model_id if "/" in name else model_id.rpartition("/")[2] for model_id in list_models()]
    known = _beginning_or_containing(_plain(name), known) or known
    if closest_names(name, known):
        return UnknownNameError("--model", name, known, hint)
    nothing_near = f"none like it; `plimsoll catalog models` lists all {len(known)} {hint}"
    return UnknownNameError("--model", name, (), nothing_near)


def _beginning_or_containing(wanted: str, known: Collection[str]) -> list[str]:
    """Names that begin with what was typed (in plain letters), else those that contain it; empty if there are none.

    They are nearer than any that is only spelt like it.
    """
    beginning = [name for name in known if wanted and _plain(name).startswith(wanted)]
    return beginning or [name for name in known if wanted and wanted in _plain(name)]
