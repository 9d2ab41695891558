"""The same work as others would do it: Ray Data as its documentation has it, and a loop with `transformers`."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import soundfile
import torch
from ray.data.checkpoint import CheckpointConfig

from benchmarks.extraction.corpus import Work
from mvqkd.models.quantizer import Coder, Quantizer
from mvqkd.models.teachers import Teacher
from mvqkd.pipeline.cluster.connect import resources
from mvqkd.pipeline.stages.sizing import embedder_settings, extract_share
from mvqkd.workers.corpus.sources import resolved

BATCH_UTTERANCES = 32
"""Of a Ray Data batch: it counts rows, not seconds. About a minute of AN4."""


def ray_data(work: Work, cuts: Any, folder: Path) -> dict[str, float]:
    """Ray Data on the Ray that runs already: our teacher and quantizer in an actor class, Parquet, checkpoints."""
    share = extract_share(work.run, resources())
    teacher = embedder_settings(work.run, share).teacher
    rows = [_source(work, cut) for cut in cuts]
    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="cut_id", checkpoint_path=str(folder / "ray-data-checkpoint")
    )
    began = time.perf_counter()
    (
        ray.data.from_items(rows)
        .map_batches(
            _Coding,
            fn_constructor_args=(teacher, work.run, int(share.cpus)),
            batch_size=BATCH_UTTERANCES,
            compute=ray.data.ActorPoolStrategy(size=share.workers),
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        .write_parquet(str(folder / "ray-data"))
    )
    seconds = time.perf_counter() - began
    hours = sum(cut.duration for cut in cuts) / 3600
    return {"hours_per_hour": hours * 3600 / seconds, "seconds": seconds, "hours": hours}


def _source(work: Work, cut: Any) -> dict[str, Any]:
    path = resolved(cut, work.run.corpus_root).sources[0].source
    return {"cut_id": cut.id, "path": path, "start": cut.start, "duration": cut.duration}


class _Coding:
    """What a user would write: read, embed, code."""

    def __init__(self, teacher: Any, run: Any, threads: int) -> None:
        from mvqkd.workers.quantizer_record import load_quantizer
        from mvqkd.workers.teacher import choose_device, open_teacher

        torch.set_num_threads(threads)
        self._teacher: Teacher = open_teacher(teacher, options=run.config.storage.options)
        quantizer, _ = load_quantizer(run.quantizer)
        self._coder = Coder(quantizer.to(choose_device(teacher.device)), search=run.config.extract.search)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        waveforms = [
            _read(*each) for each in zip(batch["path"], batch["start"], batch["duration"], strict=True)
        ]
        embedded = self._teacher.embed_batch(waveforms)
        codes_FN, rrl_B = self._coder(embedded.frames[0], embedded.lengths_B)
        codes = [part.cpu().numpy() for part in codes_FN.split(embedded.lengths)]
        return pa.table(
            {
                "cut_id": list(batch["cut_id"]),
                "num_frames": list(embedded.lengths),
                "rrl": rrl_B.tolist(),
                "codes": [part.tolist() for part in codes],
            }
        )


def _read(path: str, start: float, duration: float) -> torch.Tensor:
    with soundfile.SoundFile(path) as file:
        file.seek(round(start * file.samplerate))
        return torch.from_numpy(file.read(round(duration * file.samplerate), dtype="float32"))


def plain_loop(work: Work, cuts: Any, folder: Path, *, threads: int) -> dict[str, Any]:
    """One utterance after the other through `transformers` as its documentation has it, then a quantizer.

    The quantizer is `multi_quantization` where it is installed, with random codebooks, which take as long to search;
    else ours as its `encode` is by default.
    """
    from transformers import AutoFeatureExtractor, AutoModel

    torch.set_num_threads(threads)
    path = work.run.config.teacher.path
    extractor, model = (
        AutoFeatureExtractor.from_pretrained(path),
        AutoModel.from_pretrained(path).float().eval(),
    )
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else model
    quantizer, name = _quantizer(work)
    layer = work.contract.layer
    (folder / "plain").mkdir()
    began = time.perf_counter()
    for number, cut in enumerate(cuts):
        source = _source(work, cut)
        waveform = _read(source["path"], source["start"], source["duration"])
        inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            states = encoder(**inputs, output_hidden_states=True).hidden_states[layer][0]
            codes = quantizer.encode(states[: int(source["duration"] * 50) + 1])
        np.save(folder / "plain" / f"{number}.npy", codes.numpy())
    seconds = time.perf_counter() - began
    hours = sum(cut.duration for cut in cuts) / 3600
    return {"hours_per_hour": hours * 3600 / seconds, "seconds": seconds, "hours": hours, "quantizer": name}


def _quantizer(work: Work) -> tuple[Any, str]:
    ours: Quantizer = work.quantizer()
    try:
        from multi_quantization import Quantizer as Peer
    except ImportError:
        return ours, "ours, default encode"
    return Peer(ours.dim, ours.codebook_size, ours.num_codebooks), "multi_quantization"
