"""Who may import whom. One direction only, or the house becomes a knot."""

import ast

import pytest
from conftest import ROOT

LEAVES = {
    "images", "image_processor", "image_paths", "ink", "line_cutting", "line_normalization", "prepared", "line", "streaming",
    "page_ink", "letters", "line_detection", "page_outlines", "containers",
    "tokens", "tokenizer_files", "metrics", "files", "tensor_files", "torch_files", "unpickle", "config", "generation_files",
    "chips", "cores",
}  # fmt: skip
# each module may import from the library what stands to its left in one of these chains (and any leaf)
ORDER = [
    (
        "config fairseq weights pretrained flash layers encoder decoder_layer decoder model packed "
        "logits loop sampling beam decoding reader"
    ).split(),
    "lanes engine engine_thread".split(),
    "lanes reader".split(),
    "loop jobs".split(),
    "decoding slots jobs slot_jobs engine".split(),
    "decoding jobs search_jobs engine".split(),
    "engine reader".split(),
    "reader read_command doctor cli".split(),
    "decoding sharding reader".split(),
    "sharding ahead_of_time".split(),
    "page_formats page page_command read_command".split(),
]
NO_JAX = LEAVES | {"fairseq", "page", "page_formats", "page_command"}
APPS = ("convert", "train", "serve")
REFERENCE_ALLOWED = {"convert/verify.py", "serve/peers.py"}


def imports(path) -> set[str]:
    """Names imported at any depth, relative ones as they are written: ".config", "jax", "trocr_jax.model"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found |= {prefix} if node.module else {prefix + alias.name for alias in node.names}
    return found


def modules(folder: str):
    return sorted((ROOT / folder).glob("*.py"))


def before(name: str) -> set[str]:
    """Everything that stands left of a module in some chain, and left of those."""
    left = {n for chain in ORDER if name in chain for n in chain[: chain.index(name)]}
    return left | {n for other in left for chain in ORDER if other in chain for n in chain[: chain.index(other)]}


@pytest.mark.parametrize("path", modules("trocr_jax"), ids=lambda p: p.stem)
def test_library_imports_point_one_way(path):
    if path.stem in ("__init__", "__main__"):
        return
    own = {name[1:].split(".")[0] for name in imports(path) if name.startswith(".")}
    allowed = before(path.stem) | LEAVES
    if path.stem == "read_command" or path.stem in ("doctor", "page_command"):
        allowed |= {"cli"}  # for its UsageError; cli names verbs and imports none of them
    assert own - {path.stem} <= allowed, f"{path.stem} imports {sorted(own - allowed)}"


@pytest.mark.parametrize("path", modules("trocr_jax"), ids=lambda p: p.stem)
def test_library_knows_no_app_and_leaves_no_jax(path):
    names = imports(path)
    assert not {n for n in names if n.lstrip(".").split(".")[0] in APPS or n.startswith(tuple(f"trocr_jax.{a}" for a in APPS))}
    if path.stem in NO_JAX:
        assert not {n for n in names if n.split(".")[0] in ("jax", "flax", "optax")}, f"{path.stem} is a leaf without jax"


@pytest.mark.parametrize("app", APPS)
def test_apps_import_themselves_relatively_and_the_library_absolutely(app):
    for path in modules(app):
        for name in imports(path):
            assert not name.startswith(".."), f"{path}: {name}"
            assert name.split(".")[0] not in APPS, f"{path}: {name} must be relative"
            assert not name.startswith(tuple(f"trocr_jax.{a}" for a in APPS)), f"{path}: apps do not import apps"


@pytest.mark.parametrize("folder", ("trocr_jax", *APPS))
def test_no_files_import_each_other_in_a_circle(folder):
    stems = {path.stem for path in modules(folder)}
    arrows = {p.stem: {n[1:].split(".")[0] for n in imports(p) if n.startswith(".")} & stems - {p.stem} for p in modules(folder)}
    while free := {stem for stem, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {stem: targets for stem, targets in arrows.items() if stem not in free}
    assert not arrows, f"in or above a circle: {sorted(arrows)}"


def test_torch_and_transformers_are_imported_only_where_they_are_the_reference():
    for folder in ("trocr_jax", *APPS):
        for path in modules(folder):
            if f"{folder}/{path.name}" not in REFERENCE_ALLOWED:
                assert not {n for n in imports(path) if n.split(".")[0] in ("torch", "transformers")}, path
