"""RGB to the exact pixels a checkpoint was trained on. No jax here.

Pixels follow transformers' PIL image processors bit for bit, so the filter (bilinear for base and large, bicubic for
small) comes from the checkpoint's own json. The model gets uint8 [H, W, 3] and normalises on the device: a quarter of
the transfer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from .line_normalization import normalize_line


class PreprocessorError(ValueError):
    """A preprocessor json that would make other pixels than this package does; the message names the field."""


@dataclass(frozen=True)
class ImageProcessor:
    """Resizes an RGB image to the size of a model and normalises it, as transformers' PIL processors do.

    fit: "stretch" ignores the aspect ratio, as every public checkpoint was trained; "pad" scales to the height, keeps
    the aspect and fills the right with the paper's colour (the median of the image's border: white would draw an edge
    on grey or dark paper that looks like a stroke), and squeezes a line that is wider than the model; "line" does so after
    making it dark on white, level and always of the same height (`line_normalization`). transformers knows neither of the
    two and would stretch.

    trimmed: the model was trained, besides whole images, on images without most of the empty columns at their right
    (`data.cut` of training), and reads both.
    """

    height: int = 384
    width: int = 384
    resample: Image.Resampling = Image.Resampling.BILINEAR
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    fit: Literal["stretch", "pad", "line"] = "stretch"
    trimmed: bool = False

    @classmethod
    def from_hf(cls, preprocessor: dict[str, Any], image_size: tuple[int, int] | None = None) -> ImageProcessor:
        """From the content of preprocessor_config.json, or of processor_config.json, which nests it.

        image_size: (height, width) of the model; a json of another size is refused, one without a size takes it.
        Raises PreprocessorError naming the field where the json asks for pixels that would differ.
        """
        fields = preprocessor.get("image_processor", preprocessor)
        _require(isinstance(fields, dict), "image_processor is no object")
        fields = {name: value for name, value in fields.items() if value is not None}
        deit = _is_deit(fields)
        _refuse_other_steps(fields, deit)
        height, width = _size(fields.get("size"), image_size)
        resample = fields.get("resample", 3 if deit else 2)
        _require(resample in tuple(Image.Resampling), f"resample {resample!r} is no PIL filter number")
        normalizes = fields.get("do_normalize", True)
        return cls(
            height=height,
            width=width,
            resample=Image.Resampling(resample),
            mean=_channels(fields, "image_mean", 0.5) if normalizes else (0.0, 0.0, 0.0),
            std=_channels(fields, "image_std", 0.5) if normalizes else (1.0, 1.0, 1.0),
            fit=fields.get("fit", "stretch"),
            trimmed=fields.get("trimmed", False),
        )

    def __post_init__(self) -> None:
        _require(self.height > 0 and self.width > 0, f"size {self.height} x {self.width} has no pixels")
        _require(self.fit in ("stretch", "pad", "line"), f"fit {self.fit!r} is none of stretch, pad and line")
        _require(all(self.std), "image_std has a zero")
        _require(self.trimmed in (True, False), f"trimmed {self.trimmed!r} is neither true nor false")

    def to_hf(self) -> dict[str, Any]:
        """The content of a preprocessor_config.json that transformers and `from_hf` read."""
        fields = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.height, "width": self.width},
            "resample": int(self.resample),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        own = ({"fit": self.fit} if self.fit != "stretch" else {}) | ({"trimmed": True} if self.trimmed else {})
        return fields | own

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image (from `load`) to uint8 [height, width, 3]."""
        if image.mode != "RGB":
            raise ValueError(f"ImageProcessor takes an RGB image and got mode {image.mode}: pass it through load()")
        if self.fit == "line":
            return normalize_line(image, self.height, self.width)
        if self.fit == "stretch":
            return np.asarray(image.resize((self.width, self.height), self.resample))
        width = min(max(round(image.width * self.height / image.height), 1), self.width)
        pixels = np.asarray(image.resize((width, self.height), self.resample))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        page = np.empty((self.height, self.width, 3), np.uint8)
        page[:] = np.median(border, axis=0).astype(np.uint8)
        page[:, :width] = pixels
        return page

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., 3] to float32 [..., 3], bit-equal to transformers: the reference for what the device does."""
        scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise PreprocessorError(f"preprocessor: {message}")


def _is_deit(fields: dict[str, Any]) -> bool:
    kind = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    family = re.fullmatch(r"(ViT|DeiT)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(kind))
    _require(family is not None, f"image_processor_type {kind!r} is not supported, only ViT's and DeiT's are")
    return family is not None and family[1] == "DeiT"


def _refuse_other_steps(fields: dict[str, Any], deit: bool) -> None:
    for name in ("do_resize", "do_rescale"):
        _require(fields.get(name, True), f"{name} false is not supported")
    factor = fields.get("rescale_factor", 1 / 255)
    _require(factor == 1 / 255, f"rescale_factor {factor!r} is not supported, only 1/255 is")
    known = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}
    others = {name: on for name, on in fields.items() if name.startswith("do_") and name not in known}
    for name, on in ({"do_center_crop": deit} | others).items():
        _require(not on, f"{name} is not supported" + ("" if name in fields else " (DeiT's default: say false)"))


def _size(size: Any, image_size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None and image_size is not None:
        return image_size
    height, width = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    if type(height) is not int or type(width) is not int:
        raise PreprocessorError(f"preprocessor: size {size!r} is neither an integer nor a height and a width")
    fits = image_size is None or (height, width) == tuple(image_size)
    _require(fits, f"size {(height, width)} does not fit the model's image_size {image_size}")
    return height, width


def _channels(fields: dict[str, Any], name: str, default: float) -> tuple[float, ...]:
    value = fields.get(name, default)
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    _require(len(values) == 3 and all(type(x) in (int, float) for x in values), f"{name} {value!r} is no three numbers")
    return tuple(float(x) for x in values)
