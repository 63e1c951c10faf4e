"""Who may import whom. One direction only, or the house becomes a knot."""

import ast

import pytest
from conftest import ROOT

LEAVES = {
    "images", "image_paths", "containers", "prepared", "line", "streaming", "tokens", "metrics", "files", "config", "chips",
    "cores", "terminal", "buckets", "flags", "agreement", "program_text", "tesseract",
    "pixels.image_processor", "pixels.ink", "pixels.line_cutting", "pixels.line_normalization", "pixels.strokes",
    "pages.binarization", "pages.deskew", "pages.letters", "pages.line_detection", "pages.orientation", "pages.outlines",
    "pages.paper", "pages.rules", "pages.sheet",
    "checkpoints.tokenizer_files", "checkpoints.generation_files", "checkpoints.tensor_files", "checkpoints.torch_files",
    "checkpoints.unpickle",
}  # fmt: skip
# each module may import from the library what stands to its left in one of these chains (and any leaf)
ORDER = [
    (
        "config checkpoints.fairseq checkpoints.weights pretrained "
        "network.trial network.flash network.fused network.mesh_axes network.layers network.kv_cache network.attention "
        "network.encoder network.decoder_layer network.step_layers network.decoder model "
        "generation.packed generation.constraint generation.config generation.result generation.processors generation.loop "
        "generation.sampling generation.beam "
        "decoding patterns reader"
    ).split(),
    "lanes batching.search_jobs engine engine_thread".split(),
    "lanes reader".split(),
    "generation.config batching.jobs".split(),
    "decoding batching.device batching.jobs batching.slot_jobs engine".split(),
    "decoding batching.jobs batching.search batching.search_jobs engine".split(),
    "reader commands.read commands.doctor".split(),
    "compilation_cache commands.read".split(),
    "decoding sharding reader".split(),
    "sharding ahead_of_time".split(),
    "pages.words pages.formats page commands.page commands.read".split(),
    "cli commands.read".split(),  # cli names verbs and imports none of them
    "cli commands.doctor".split(),
    "cli __main__".split(),
]
NO_JAX = LEAVES | {"checkpoints.fairseq", "page", "pages.formats", "pages.words", "commands.page"}
APPS = ("convert", "train", "serve")
REFERENCE_ALLOWED = {"convert/verify.py", "serve/benchmark/peers.py"}


ROOMS = {folder: {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")} for folder in ("trocr_jax", *APPS)}
ROOMS["trocr_jax"] -= {*APPS}  # where an install of a checkout has put them


def modules(folder: str):
    """The files of the library or of an app, those of its rooms too."""
    rooms = [ROOT / folder, *(ROOT / folder / room for room in sorted(ROOMS[folder]))]
    return [path for room in rooms for path in sorted(room.glob("*.py")) if path.stem != "__init__"]


def place(path) -> str:
    """What a file is called from inside of the library or of its app: "reader", "network.layers"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


def imports(path) -> set[str]:
    """Names imported at any depth, relative ones as they are written: ".config", "jax", "trocr_jax.model"."""
    rooms, found = ROOMS[path.relative_to(ROOT).parts[0]], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            inside = f"{prefix}." if node.module else prefix
            found |= {inside + alias.name for alias in node.names} if node.module in {None, *rooms} and node.level else {prefix}
    return found


def own(path) -> set[str]:
    """The modules beside it that one imports, by their places."""
    room = place(path).rpartition(".")[0]
    near = {name[1:] for name in imports(path) if name.startswith(".") and name[1] != "."}
    far = {name[2:] for name in imports(path) if name.startswith("..")}
    assert room or not far, f"{path} reaches out of its folder"
    return far | {f"{room}.{name}" if room else name for name in near}


def before(name: str) -> set[str]:
    """Everything that stands left of a module in some chain, and left of those."""
    left = {n for chain in ORDER if name in chain for n in chain[: chain.index(name)]}
    return left | {n for other in left for chain in ORDER if other in chain for n in chain[: chain.index(other)]}


@pytest.mark.parametrize("path", modules("trocr_jax"), ids=place)
def test_library_imports_point_one_way(path):
    wrong = own(path) - before(place(path)) - LEAVES
    assert not wrong, f"{place(path)} imports {sorted(wrong)}"


@pytest.mark.parametrize("folder", ("trocr_jax", *APPS))
def test_files_and_rooms_point_one_way(folder):
    """A folder is a room, and so is a file beside them."""
    files = {place(path): own(path) for path in modules(folder)}
    assert set().union(*files.values()) <= files.keys(), "what is imported is there"
    rooms = {}
    for name, names in files.items():
        room = name.partition(".")[0]
        rooms[room] = rooms.get(room, set()) | {other.partition(".")[0] for other in names} - {room}
    assert len(files) > 3 and any(files.values())
    assert not circle(files) and not circle(rooms)


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Whatever is in a circle of arrows, or leads into one."""
    while free := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in free}
    return sorted(arrows)


@pytest.mark.parametrize("path", modules("trocr_jax"), ids=place)
def test_library_knows_no_app_and_leaves_no_jax(path):
    names = imports(path)
    assert not {n for n in names if n.lstrip(".").split(".")[0] in APPS or n.startswith(tuple(f"trocr_jax.{a}" for a in APPS))}
    if place(path) in NO_JAX:
        assert not {n for n in names if n.split(".")[0] in ("jax", "flax", "optax")}, f"{place(path)} is a leaf without jax"


@pytest.mark.parametrize("path", [path for app in APPS for path in modules(app)], ids=lambda path: str(path.relative_to(ROOT)))
def test_apps_import_themselves_relatively_and_the_library_absolutely(path):
    for name in imports(path):
        assert name.split(".")[0] not in APPS, f"{name} must be relative"
        assert not name.startswith(tuple(f"trocr_jax.{a}" for a in APPS)), "apps do not import apps"


def test_torch_and_transformers_are_imported_only_where_they_are_the_reference():
    for path in (path for folder in ("trocr_jax", *APPS) for path in modules(folder)):
        if str(path.relative_to(ROOT)) not in REFERENCE_ALLOWED:
            assert not {n for n in imports(path) if n.split(".")[0] in ("torch", "transformers")}, path
