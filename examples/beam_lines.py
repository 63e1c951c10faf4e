"""Reads the images that a glob names with Apache Beam: python examples/beam_lines.py 'FOLDER/*.png' OUTPUT [BEAM'S OPTIONS].

Needs `pip install apache-beam`, best in an environment of its own. Runs here, or on Dataflow with --runner DataflowRunner.
"""

import json
import sys

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from trocr_jax.serve.beam_adapter import LineModelHandler


def to_json(read: tuple) -> str:
    name, result = read
    return json.dumps({"id": name, **result.inference}, ensure_ascii=False)


if __name__ == "__main__":
    pattern, out, *options = sys.argv[1:]
    with beam.Pipeline(argv=options) as pipeline:
        (
            pipeline
            | fileio.MatchFiles(pattern)
            | fileio.ReadMatches()
            | beam.Map(lambda file: (file.metadata.path, file.read()))
            | RunInference(KeyedModelHandler(LineModelHandler()))
            | beam.Map(to_json)
            | beam.io.WriteToText(out, file_name_suffix=".jsonl")
        )
