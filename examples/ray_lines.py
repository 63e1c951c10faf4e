"""Reads the images below a folder with Ray Data: python examples/ray_lines.py FOLDER OUTPUT. Needs `pip install "ray[data]"`."""

import sys

import ray

from trocr_jax.serve.ray_adapter import LineReader

if __name__ == "__main__":
    source, out = sys.argv[1:]
    images = ray.data.read_binary_files(source, include_paths=True)  # a folder here, or gs://, s3://
    lines = images.map_batches(
        LineReader,
        batch_format="pyarrow",
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(size=2),  # one a chip: add num_gpus=1, or resources={"TPU": 1}
        num_cpus=0.5,  # a whole one each would leave none for reading the files where there are two
        fn_constructor_kwargs={"model": None, "batch_size": 8},
    )
    lines.write_parquet(out)
