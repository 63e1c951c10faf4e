"""Complete model directories: opened by name or path whatever their layout, written so that `from_pretrained` suffices.

A saved model holds config, weights, tokenizer, preprocessing, generation defaults and a manifest. Weights are either
the hub's `model.safetensors` or an Orbax folder with our stacked arrays; everything else is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import files
from .checkpoints import fairseq, generation_files, tensor_files, torch_files, weights
from .checkpoints.tensor_files import Tensors
from .config import NEW_TOKENS, TrOCRConfig
from .files import FilesError

Format = Literal["hub", "orbax"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is open. Tensors are read when they are used, those of Orbax all at once here.

    Attributes:
        path: the directory, or the file of a fairseq checkpoint.
        config: from `config.json`, or what a fairseq file implies.
        tensors: under the names that `weights.load` takes.
    """

    path: Path
    config: TrOCRConfig
    tensors: Tensors

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which the weights are stored."""
        return weights.dtype_of(self.tensors)


def open_checkpoint(name: str | Path | None = None, config: TrOCRConfig | None = None) -> Checkpoint:
    """Finds and opens a checkpoint.

    Args:
        name: hub name (or `owner/model@revision`), directory (hub layout or our Orbax), fairseq `.pt` file, or None for the
            model in the package.
        config: used instead of what a fairseq file implies.

    Raises:
        FilesError: not found, incomplete or damaged, or a config given beside its own. TorchFileError: the same for a torch file.
        ConfigError: a model that this package does not support.
    """
    path = files.resolve(name)
    if path.is_file():
        return _open_file(path, config)
    if config is not None:
        raise FilesError(f"{path}: a directory has its own config; only a fairseq file takes another")
    if not (path / "config.json").is_file():
        raise FilesError(f"{path}: not a model directory, it has no config.json")
    files.check_manifest(path)
    content = files.read_json(path / "config.json")
    if "model_type" not in content and (path / "checkpoints").is_dir():
        raise FilesError(f"{path}: a training run; name its {path / 'model'}, or one of its {path / 'checkpoints'}")
    config = TrOCRConfig.from_hf(content)
    orbax = path / files.ORBAX
    return Checkpoint(path, config, _read_orbax(orbax, config) if orbax.is_dir() else tensor_files.open_tensors(path))


def _open_file(path: Path, config: TrOCRConfig | None) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise FilesError(f"{path}: holds weights without their config; pass the directory that it lies in")
    content = torch_files.load(path)
    tensors = torch_files.state_dict(content, path)
    if not fairseq.is_fairseq(tensors):
        raise FilesError(f"{path}: not a TrOCR checkpoint of fairseq; pass a directory instead of its weight file")
    return Checkpoint(path, config or fairseq.infer_config(tensors, fairseq.arguments(content)), tensors)


def companions(directory: Path | str) -> dict[str, bytes]:
    """What a directory has beside config and weights: tokenizer, preprocessing and generation defaults, name -> content.

    Generation defaults that stand in its config.json come as a file of their own, which is where they belong today.
    """
    names = (*files.TOKENIZER_FILES, *files.PREPROCESSOR_FILES, generation_files.NAME)
    found = {name: path.read_bytes() for name in names if (path := Path(directory, name)).is_file()}
    if generation_files.NAME not in found and (path := Path(directory, "config.json")).is_file():
        content = files.read_json(path)
        if settings := generation_files.in_model_config(content):
            found[generation_files.NAME] = _generation_config(TrOCRConfig.from_hf(content), settings)
    return found


def save(
    model: Any, directory: Path | str, companions: Mapping[str, bytes], *, to: Format = "hub", replace: bool = False
) -> Path:
    """Writes a complete model directory in one step: after a crash it is there whole or not at all.

    Args:
        model: a TrOCR whose parameters this process can read.
        directory: must not exist, or be empty, unless `replace`.
        companions: file name -> content, as `companions(other_directory)` reads them.
        to: "hub" for `model.safetensors`, which transformers loads too; "orbax" for our stacked arrays.
        replace: whether it takes the place of a directory that is there, which stays until then.

    Raises:
        FilesError: the place is taken, the disk full, or what was written reads back differently.
    """
    with files.new_directory(directory, replace) as folder:
        usual = {"max_new_tokens": min(NEW_TOKENS, model.config.decoder.max_positions), "use_cache": True}
        for name, content in {generation_files.NAME: _generation_config(model.config, usual), **companions}.items():
            (folder / name).write_bytes(content)
        parameters = weights.arrays(model)
        dtype = weights.common_dtype(parameters.values()).name
        files.write_json(folder / "config.json", {**model.config.to_hf(), "dtype": dtype, "torch_dtype": dtype})
        if to == "hub":
            tensor_files.write_safetensors(folder / "model.safetensors", weights.to_hub(parameters, model.config))
        else:
            _write_orbax(folder / files.ORBAX, parameters)
    return Path(directory)


def _generation_config(config: TrOCRConfig, settings: Mapping[str, Any]) -> bytes:
    """A generation_config.json for a model that brings none."""
    names = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(config, name) for name in names}
    return (json.dumps({**ids, **settings}, indent=2) + "\n").encode()


def _write_orbax(path: Path, parameters: Mapping[str, np.ndarray]) -> None:
    """The one place that knows Orbax: a flat dict of host arrays, read back and compared."""
    from orbax.checkpoint import v1 as ocp

    ocp.save(str(path), dict(parameters))
    written = _load_orbax(path)
    if written.keys() != parameters.keys() or any(not tensor_files.same(written[n], x) for n, x in parameters.items()):
        raise FilesError(f"{path}: reads back differently from what was written")


def _load_orbax(path: Path) -> dict[str, np.ndarray]:
    from orbax.checkpoint import v1 as ocp

    metadata: Any = ocp.metadata(str(path)).metadata
    return dict(ocp.load(str(path), {name: np.empty(entry.shape, entry.dtype) for name, entry in metadata.items()}))


def _read_orbax(path: Path, config: TrOCRConfig) -> Tensors:
    try:
        parameters = _load_orbax(path.resolve())
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise FilesError(f"{path}: the Orbax checkpoint cannot be read; damaged or incomplete") from error
    return weights.to_hub(parameters, config)
