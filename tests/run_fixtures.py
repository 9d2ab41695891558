"""A tiny corpus and teacher, a run file for both, a finished run of it, and one Ray session for all tests."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from tiny import Done, make_run, run_tree, write_corpus

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Here, so that tests that need no teacher do not wait for it.
    import torch
    from transformers import HubertConfig, HubertModel

    path = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    return path


@pytest.fixture
def tree(corpus_root: Path, teacher_path: Path, tmp_path: Path) -> dict[str, Any]:
    """A run file as a mapping; tests change it and write it. Its stages run in this process."""
    return run_tree(corpus_root, teacher_path, tmp_path / "run")


@pytest.fixture(scope="session")
def done(corpus_root: Path, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A finished run, made in this process: its run file as a mapping, and its folder."""
    from mvqkd.pipeline.run_all import run_all

    folder = tmp_path_factory.mktemp("done")
    tree = run_tree(corpus_root, teacher_path, folder / "run")
    run_all(make_run(tree, folder))
    return tree, folder / "run"


@pytest.fixture(scope="session")
def ray_session(s3_server: S3Server) -> Iterator[None]:
    """One Ray cluster for the suite; its workers know the S3 server's credentials from their environment."""
    from mvqkd.pipeline.cluster.connect import cluster
    from mvqkd.pipeline.run_sections import ClusterConfig

    settings = {
        **s3_server.environment,
        "RAY_AUTH_MODE": "disabled",  # which a Ray that we start overrides
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        # Workers import the classes of these tests by name.
        "PYTHONPATH": os.pathsep.join(
            str(TESTS / folder) for folder in ("..", ".", "jobs", "faults", "workers")
        ),
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    with cluster(ClusterConfig(num_cpus=2)):
        yield
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
