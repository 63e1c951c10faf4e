"""Everything that decides a training run, as frozen dataclasses, and the presets by name.

The same command on the same machine gives the same run: nothing outside this configuration, the data and the code decides it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from trocr_jax.terminal import UsageError

FONTS = Path("~/.cache/trocr-jax/fonts")
"""Where fetch_fonts.sh puts fonts: `training/FAMILY/` and `held-out/FAMILY/`."""
LINES = Path("~/.cache/trocr-jax/lines")


@dataclass(frozen=True)
class SyntheticConfig:
    """Lines that the program draws itself, kept on disk and used again.

    Attributes:
        fonts: folder of fonts to draw with.
        held_out_fonts: folder of fonts that only evaluation draws with; where there is none, it says so and takes `fonts`.
        seed: decides the lines; the order in which they are used depends on the run's seed.
        min_length: characters of a text that are aimed at, at least.
        max_length: characters of a text at most.
        max_squeeze: a line is drawn anew whose width over height is more than so many times that of the model's image.
        start: lines on disk before the first step.
        fresh: lines that are added for every line that is used, until there are `lines`.
        lines: how many at most; 12 KB each at 32 x 128 pixels.
        workers: processes that draw.
        cache: where the lines lie.
    """

    fonts: Path = FONTS / "training"
    held_out_fonts: Path = FONTS / "held-out"
    seed: int = 1
    min_length: int = 1
    max_length: int = 48
    max_squeeze: float = 2.0
    start: int = 8192
    fresh: float = 0.25
    lines: int = 500_000
    workers: int = 1
    cache: Path = LINES


@dataclass(frozen=True)
class DataConfig:
    """Where lines come from. A source is a path in one of the formats that docs/tutorial.md lists, or "synthetic".

    Attributes:
        train: sources to mix, each with its share after an "@" ("iam/gt_train.txt@0.8 synthetic@0.2"); without one, 1.
        valid: sources that evaluation reads, each a row of its table.
        augment: by the recipe "da2" for handwriting and receipts, or "rand" for scene text. Drawn lines are not augmented again.
        max_bad: largest share of records that cannot be used (unreadable image, empty or over-long label); above it the run ends,
            judged from 200 different records on, or from all of them.
        threads: how many threads decode images.
        group: batches that are taken together and sorted by length of label, so that short ones need not be padded to the
            longest; 1 keeps the order. One host only.
        cut: pixels; three batches of four lose the empty columns that all their lines end with, down to a multiple of this: half
            of the work on short lines. The fourth stays whole, as the reader's images are. 0 is off. For one row of patches only.
    """

    train: tuple[str, ...] = ("synthetic",)
    valid: tuple[str, ...] = ("synthetic",)
    augment: Literal["none", "da2", "rand"] = "none"
    max_bad: float = 0.01
    threads: int = 4
    group: int = 1
    cut: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (decoupled weight decay, Loshchilov and Hutter, 2019) and the learning rate over time.

    Attributes:
        lr: the largest learning rate.
        schedule: after the warmup: inverse_sqrt (fairseq's), cosine or linear towards `final_lr`, or constant.
        warmup: steps from almost 0 to `lr`.
        final_lr: share of `lr` at the last step of cosine and linear.
        beta1: decay a step of the gradient's average.
        beta2: decay a step of the average of its square.
        eps: added to the root of the latter.
        weight_decay: share of a parameter that is taken off, per step and unit of learning rate.
        decay: regex; parameters whose path it finds, as rules of `rates` do, are decayed; by default all. Under LoRA a kernel's
            factors are.
        clip: largest norm of the gradient; 0 is off.
        label_smoothing: share of a target's probability that is spread over the vocabulary.
        rates: "regex=factor" rules for single parameters ("encoder.layers.3.mlp.fc1.kernel"); the first that matches decides,
            0 freezes, and every parameter must match one. `^encoder=0 .*=1` freezes the encoder. Under LoRA a kernel's factor is
            that of its two factors, and a frozen kernel gets none.
        layer_decay: factor of the learning rate for every layer further from the end of encoder or decoder.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        ema: decay a step of a moving average of the parameters, which is then what is evaluated and saved; 0 is off.
    """

    lr: float = 2e-5
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "inverse_sqrt"
    warmup: int = 500
    final_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decay: str = ""
    clip: float = 0.0
    label_smoothing: float = 0.0
    rates: tuple[str, ...] = (".*=1",)
    layer_decay: float = 1.0
    accumulate: int = 1
    ema: float = 0.0


@dataclass(frozen=True)
class LoraConfig:
    """Train small factors beside frozen kernels (Hu et al., 2022); saved models have them merged. With another vocabulary, as
    from --start.extend-vocab, its embedding and head are trained too, whole.

    What it saves is the optimizer's state, in memory and in checkpoints. It saves no activations, and of the gradients only
    those of kernels without factors: every step merges the others whole, and computes their gradients whole.

    Attributes:
        rank: the rank of the factors; 0 trains the parameters themselves.
        alpha: what the product of the factors is multiplied by, over the rank.
        targets: regex of the kernels that get factors.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = r"(query|value)\.kernel$"


@dataclass(frozen=True)
class StartConfig:
    """The model that training starts from.

    Attributes:
        model: a directory or hub name (a fairseq file after `trocr-jax convert`), "package" for the model in the package, or
            "scratch" for random numbers.
        architecture: what to build from scratch: a name in `start.ARCHITECTURES`, or that of a public checkpoint.
        tokenizer: a directory or hub name with another tokenizer; rows of tokens that both have are kept, a new one is the mean
            of the tokens that its text was made of, or noise where there are none.
        extend_vocab: characters to add to the vocabulary, or a text file that holds them.
        image_size: height and width in pixels, where they differ from the model's.
        positions: how a larger image gets its positions: "interpolate" as ViT fine-tuning does, or "continue" the trained
            columns with the sinusoids that they grew from (only models from scratch have those).
        fit: how a line gets into the model's image, where it differs from the model's: "stretch", "pad" or "line".
        dropout: share of activations that a step leaves out in encoder and decoder, where it differs from the model's.
    """

    model: str = "package"
    architecture: str = "tiny-print"
    tokenizer: str | None = None
    extend_vocab: str | None = None
    image_size: tuple[int, int] | None = None
    positions: Literal["interpolate", "continue"] = "interpolate"
    fit: Literal["stretch", "pad", "line"] | None = None
    dropout: float | None = None


@dataclass(frozen=True)
class PreflightConfig:
    """Checks before the first step, which take seconds and save hours.

    Attributes:
        enabled: refuse to start when one fails.
        lines: how many lines to check the labels of.
        overfit: steps on one batch, which the model must learn by heart; 0 leaves it out.
    """

    enabled: bool = True
    lines: int = 200
    overfit: int = 0


@dataclass(frozen=True)
class HostsConfig:
    """Several processes, usually one a machine, that train one model.

    Attributes:
        count: 1, or how many; 0 lets jax find out (TPU pods, Slurm).
        index: the number of this process, from 0.
        coordinator: address:port of process 0; needed where jax cannot find it out.
    """

    count: int = 1
    index: int = 0
    coordinator: str | None = None


@dataclass(frozen=True)
class Config:
    """A training run.

    Attributes:
        out: the run folder; the same command goes on where the run in it stopped.
        steps: how many in all.
        batch_size: lines a step, over all devices.
        max_tokens: most tokens of a label, its end token included; longer labels are left out and counted.
        seed: decides the order of the data, and dropout.
        dtype: what to compute in; parameters are kept in float32.
        remat: compute activations twice instead of keeping them: less memory, a third more work.
        devices: how many, over all hosts; by default all.
        mesh: "data=4,model=2" cuts the weights over pairs of devices; by default every device has its own lines and all weights.
        fsdp: cut parameters and optimizer state over the devices instead of copying them.
        log_every: steps between two lines of the log.
        eval_every: steps between two evaluations; there is one at the end, too.
        save_every: steps between two checkpoints; an evaluation writes one, too.
        keep: newest checkpoints to keep beside the best one.
        patience: evaluations without a better score after which the run ends early; by default it does not.
        eval_lines: lines of every source and level that an evaluation during training reads; None reads all, 1000 of a level.
        tensorboard: write events, with lines and what was read of them.
    """

    out: Path = Path("run")
    start: StartConfig = field(default_factory=StartConfig)
    data: DataConfig = field(default_factory=DataConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    steps: int = 10_000
    batch_size: int = 64
    max_tokens: int = 64
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    devices: int | None = None
    mesh: str | None = None
    fsdp: bool = False
    log_every: int = 50
    eval_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    patience: int | None = None
    eval_lines: int | None = 200
    tensorboard: bool = False


FREE = frozenset(
    "out devices mesh fsdp remat log_every eval_every save_every keep patience eval_lines tensorboard data.threads data.max_bad "
    "data.valid synthetic.workers synthetic.cache synthetic.held_out_fonts preflight.enabled preflight.lines preflight.overfit "
    "hosts.count hosts.index hosts.coordinator".split()
)
"""Fields that may change between a run and its continuation: they do not change what is computed."""


_TINY_OPTIMIZER = OptimizerConfig(
    lr=1e-3, schedule="cosine", warmup=500, final_lr=0.01, beta2=0.98, weight_decay=0.01, decay=r"kernel$", clip=1.0
)
_FAIRSEQ = OptimizerConfig(lr=2e-5, schedule="inverse_sqrt", warmup=500, weight_decay=1e-4)
PRESETS: dict[str, Config] = {
    "stage1": Config(
        out=Path("runs/stage1"), start=StartConfig(model="microsoft/trocr-base-stage1"), optimizer=_FAIRSEQ, batch_size=8,
        max_tokens=128, steps=100_000,
    ),
    "iam": Config(
        out=Path("runs/iam"), start=StartConfig(model="microsoft/trocr-base-stage1"),
        data=DataConfig(train=("iam/gt_train.txt",), valid=("iam/gt_valid.txt",), augment="da2"), optimizer=_FAIRSEQ,
        steps=30_000, max_tokens=128, patience=20, eval_every=97, save_every=97, seed=1111, dtype="bfloat16", eval_lines=None,
    ),
    "sroie": Config(
        out=Path("runs/sroie"), start=StartConfig(model="microsoft/trocr-base-stage1"),
        data=DataConfig(train=("sroie/train",), valid=("sroie/valid",), augment="da2"),
        optimizer=replace(_FAIRSEQ, lr=5e-5, warmup=800, accumulate=16), steps=5_000, batch_size=2048, max_tokens=128,
        patience=10, eval_every=17, save_every=17, seed=1111, dtype="bfloat16", eval_lines=None,
    ),
    "str": Config(
        out=Path("runs/str"), start=StartConfig(model="microsoft/trocr-base-stage1"),
        data=DataConfig(train=("str/gt_train.txt",), valid=("str/gt_valid.txt",), augment="rand"), optimizer=_FAIRSEQ,
        steps=100_000, max_tokens=64, patience=20, eval_every=200, save_every=200, seed=1111, eval_lines=None,
    ),
    "tiny-print-short": Config(
        out=Path("runs/tiny-print-short"),
        start=StartConfig(model="scratch", architecture="tiny-print", image_size=(32, 128)),
        synthetic=SyntheticConfig(max_length=10, max_squeeze=1.0, lines=400_000), optimizer=_TINY_OPTIMIZER, steps=20_000,
        max_tokens=12,
    ),
    "tiny-print": Config(
        out=Path("runs/tiny-print"),
        start=StartConfig(model="package", image_size=(32, 512), positions="continue", fit="line"),
        data=DataConfig(group=4, cut=192), optimizer=_TINY_OPTIMIZER, steps=60_000, batch_size=32, max_tokens=64,
        synthetic=SyntheticConfig(max_length=58, max_squeeze=1.0, fresh=0.6),
    ),
}  # fmt: skip
"""Whole runs by name; every field can be overridden. `iam`, `sroie` and `str` have the numbers of the original recipes (unilm's
README), batch sizes those of eight GPUs together, steps enough for the patience to decide. How stage 1 was trained is not
published: `stage1` continues its training."""


LEAST = {
    1: "steps batch_size log_every eval_every save_every data.threads data.group optimizer.accumulate synthetic.start "
    "synthetic.lines synthetic.workers synthetic.min_length synthetic.max_length devices keep patience eval_lines",
    2: "max_tokens",
    0: "seed synthetic.seed data.cut data.max_bad optimizer.warmup optimizer.clip optimizer.final_lr optimizer.beta1 "
    "optimizer.beta2 optimizer.weight_decay optimizer.label_smoothing optimizer.layer_decay optimizer.ema "
    "lora.rank preflight.lines preflight.overfit hosts.count hosts.index start.dropout synthetic.fresh",
}
"""The smallest value of fields that are numbers, or None."""
BELOW = {
    1: "optimizer.beta1 optimizer.beta2 optimizer.label_smoothing optimizer.ema start.dropout",
    2**32: "seed",
    math.inf: "optimizer.lr optimizer.final_lr optimizer.eps optimizer.weight_decay optimizer.layer_decay optimizer.clip "
    "lora.alpha synthetic.fresh",
}
"""What fields that are numbers, or None, stay below."""


def check(config: Config) -> None:
    """Refuses numbers that no run can have and flags that would do nothing, before they end in a traceback or in silence.

    Raises:
        UsageError: naming the flag.
    """
    for least, names in LEAST.items():
        _require(config, names, lambda value, least=least: value >= least, f"at least {least}")
    for most, names in BELOW.items():
        _require(config, names, lambda value, most=most: value < most, f"less than {most}")
    _require(config, "optimizer.lr optimizer.eps lora.alpha synthetic.max_squeeze", lambda value: value > 0, "above 0")
    _require(config, "optimizer.decay lora.targets", _is_pattern, "a regular expression")
    _refuse_idle(config)
    _refuse_mismatch(config)


def _require(config: Config, names: str, holds: Callable[[Any], bool], said: str) -> None:
    for name in names.split():
        value = attrgetter(name)(config)
        if value is not None and not holds(value):
            raise UsageError(f"--{name.replace('_', '-')} must be {said}, not {value}")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _refuse_mismatch(config: Config) -> None:
    """Raises UsageError for numbers that do not fit each other."""
    if config.batch_size % config.optimizer.accumulate:
        raise UsageError(f"--optimizer.accumulate {config.optimizer.accumulate} must divide --batch-size {config.batch_size}")
    _refuse_hosts(config.hosts)
    shortest, longest = config.synthetic.min_length, config.synthetic.max_length
    if shortest > longest:
        raise UsageError(f"--synthetic.min-length {shortest} is more than --synthetic.max-length {longest}")


def _refuse_hosts(hosts: HostsConfig) -> None:
    """Raises UsageError for hosts that cannot find each other."""
    if hosts.count > 1 and not hosts.coordinator:
        raise UsageError("--hosts.count above 1 needs --hosts.coordinator, address:port of the first; with 0 jax finds it out")
    if 1 < hosts.count <= hosts.index:
        raise UsageError(f"--hosts.index {hosts.index} must be less than --hosts.count {hosts.count}: the first has 0")
    if hosts.coordinator and not re.fullmatch(r".+:\d+", hosts.coordinator):
        raise UsageError(f"--hosts.coordinator must be address:port, not {hosts.coordinator}")


def _refuse_idle(config: Config) -> None:
    """Raises UsageError for flags that do nothing, without another one or beside it."""
    for name in ("data.train", "data.valid", "start.extend_vocab"):
        if attrgetter(name)(config) in ((), ""):
            raise UsageError(f"--{name.replace('_', '-')} needs a value")
    if not config.lora.rank and config.lora != LoraConfig():
        raise UsageError("--lora.alpha and --lora.targets need --lora.rank")
    if config.start.positions != StartConfig().positions and config.start.image_size is None:
        raise UsageError("--start.positions needs --start.image-size")
    if config.hosts.count < 2 and replace(config.hosts, count=1) != HostsConfig():
        raise UsageError("--hosts.index and --hosts.coordinator need --hosts.count above 1")
    if config.devices and config.mesh:
        raise UsageError("--mesh says how many devices: leave --devices out")


def to_plain(config: Any) -> Any:
    """A configuration as JSON or YAML would hold it."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_plain(item) for item in config]
    return str(config) if isinstance(config, Path) else config
