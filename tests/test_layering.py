"""Who may import whom. One direction only, or the house becomes a knot."""

import ast

import pytest
from conftest import ROOT

LEAVES = {
    "images", "image_paths", "containers", "prepared", "line", "streaming", "tokens", "metrics", "files", "config", "chips",
    "cores",
    "pixels.image_processor", "pixels.ink", "pixels.line_cutting", "pixels.line_normalization",
    "pages.ink", "pages.letters", "pages.line_detection", "pages.outlines",
    "checkpoints.tokenizer_files", "checkpoints.generation_files", "checkpoints.tensor_files", "checkpoints.torch_files",
    "checkpoints.unpickle",
}  # fmt: skip
# each module may import from the library what stands to its left in one of these chains (and any leaf)
ORDER = [
    (
        "config checkpoints.fairseq checkpoints.weights pretrained "
        "network.flash network.layers network.encoder network.decoder_layer network.decoder model "
        "generation.packed generation.logits generation.loop generation.sampling generation.beam decoding reader"
    ).split(),
    "lanes engine engine_thread".split(),
    "lanes reader".split(),
    "generation.loop batching.jobs".split(),
    "decoding batching.slots batching.jobs batching.slot_jobs engine".split(),
    "decoding batching.jobs batching.search_jobs engine".split(),
    "reader commands.read commands.doctor".split(),
    "decoding sharding reader".split(),
    "sharding ahead_of_time".split(),
    "pages.formats page commands.page commands.read".split(),
    "cli commands.page commands.read".split(),  # for its UsageError; cli names verbs and imports none of them
    "cli commands.doctor".split(),
]
NO_JAX = LEAVES | {"checkpoints.fairseq", "page", "pages.formats", "commands.page"}
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
            if node.module in ROOMS:
                found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found - {"." * level + room for level in (1, 2) for room in ROOMS}


LIBRARY = ROOT / "trocr_jax"
ROOMS = {path.parent.name for path in LIBRARY.glob("*/__init__.py")} - {*APPS}


def modules(folder: str):
    return sorted((ROOT / folder).glob("*.py"))


def library():
    """The library's files, those of its rooms too."""
    return [path for path in sorted(LIBRARY.rglob("*.py")) if path.stem != "__init__"]


def place(path) -> str:
    """What a file of the library is called from inside of it: "reader", "network.layers"."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def own(path) -> set[str]:
    """The modules of the library that one of them imports, by their places."""
    room = place(path).rpartition(".")[0]
    near = {name[1:] for name in imports(path) if name.startswith(".") and name[1] != "."}
    far = {name[2:] for name in imports(path) if name.startswith("..")}
    return far | {f"{room}.{name}" if room else name for name in near}


def before(name: str) -> set[str]:
    """Everything that stands left of a module in some chain, and left of those."""
    left = {n for chain in ORDER if name in chain for n in chain[: chain.index(name)]}
    return left | {n for other in left for chain in ORDER if other in chain for n in chain[: chain.index(other)]}


@pytest.mark.parametrize("path", library(), ids=place)
def test_library_imports_point_one_way(path):
    assert own(path) <= {place(other) for other in library()}, "what it imports is there"
    wrong = own(path) - before(place(path)) - LEAVES
    assert not wrong, f"{place(path)} imports {sorted(wrong)}"


def test_rooms_point_one_way():
    """A folder is a room, and so is a file beside them."""
    rooms = {}
    for path in library():
        room = place(path).partition(".")[0]
        rooms[room] = rooms.get(room, set()) | {name.partition(".")[0] for name in own(path)} - {room}
    assert len(rooms) > len(ROOMS) > 5
    assert not circle(rooms)


@pytest.mark.parametrize("path", library(), ids=place)
def test_library_knows_no_app_and_leaves_no_jax(path):
    names = imports(path)
    assert not {n for n in names if n.lstrip(".").split(".")[0] in APPS or n.startswith(tuple(f"trocr_jax.{a}" for a in APPS))}
    if place(path) in NO_JAX:
        assert not {n for n in names if n.split(".")[0] in ("jax", "flax", "optax")}, f"{place(path)} is a leaf without jax"


@pytest.mark.parametrize("app", APPS)
def test_apps_import_themselves_relatively_and_the_library_absolutely(app):
    for path in modules(app):
        for name in imports(path):
            assert not name.startswith(".."), f"{path}: {name}"
            assert name.split(".")[0] not in APPS, f"{path}: {name} must be relative"
            assert not name.startswith(tuple(f"trocr_jax.{a}" for a in APPS)), f"{path}: apps do not import apps"


@pytest.mark.parametrize("folder", ("trocr_jax", *APPS))
def test_no_files_import_each_other_in_a_circle(folder):
    if folder == "trocr_jax":
        arrows = {place(path): own(path) for path in library()}
    else:
        arrows = {p.stem: {n[1:].split(".")[0] for n in imports(p) if n.startswith(".")} - {p.stem} for p in modules(folder)}
    assert len(arrows) > 3 and any(arrows.values()) and not circle(arrows)


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Whatever is in a circle of arrows, or leads into one."""
    while free := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in free}
    return sorted(arrows)


def test_torch_and_transformers_are_imported_only_where_they_are_the_reference():
    for path in [*library(), *(path for app in APPS for path in modules(app))]:
        if f"{path.parent.name}/{path.name}" not in REFERENCE_ALLOWED:
            assert not {n for n in imports(path) if n.split(".")[0] in ("torch", "transformers")}, path
