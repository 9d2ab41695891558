import hashlib

import numpy as np
import pytest

from mvqkd.storage.artifacts import load_artifact, load_metadata, read_json, save_artifact, write_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError
from mvqkd.storage.location import open_location

TENSORS = {"centers": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "steps": np.array(7, dtype=np.int64)}


@pytest.fixture
def place(tmp_path):
    return open_location(str(tmp_path))


def test_round_trip(place):
    save_artifact(place, "quantizer", TENSORS, {"id": "q1", "rrl": 0.2})
    tensors, metadata = load_artifact(place, "quantizer")
    assert metadata == {"id": "q1", "rrl": 0.2} and set(tensors) == set(TENSORS)
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype and tensors[name].shape == expected.shape
        np.testing.assert_array_equal(tensors[name], expected)


def test_views_and_insertion_order_do_not_matter(place):
    save_artifact(place, "a", TENSORS, {})
    reversed_order = dict(reversed(TENSORS.items()))
    save_artifact(place, "b", {k: np.asarray(v, order="F") for k, v in reversed_order.items()}, {})
    assert place.read_bytes("a.safetensors") == place.read_bytes("b.safetensors")
    assert place.read_bytes("a.json") == place.read_bytes("b.json")


def test_an_incomplete_or_mixed_pair_is_refused(place):
    with pytest.raises(ArtifactError, match=r"student\.json: missing"):
        load_artifact(place, "student")
    save_artifact(place, "student", TENSORS, {})
    weights = place.read_bytes("student.safetensors")
    place.replace("student.safetensors", weights[:-1])
    with pytest.raises(ArtifactError, match=r"student\.safetensors: .*SHA-256"):
        load_artifact(place, "student")
    place.remove("student.safetensors")
    with pytest.raises(ArtifactError, match=r"student\.safetensors: missing"):
        load_artifact(place, "student")
    place.replace("student.json", b'{"x": 1}')
    place.replace("student.safetensors", weights)
    with pytest.raises(ArtifactError, match=r"student\.json: not of an artifact"):
        load_artifact(place, "student")
    place.replace("student.json", b"{ torn")
    with pytest.raises(ArtifactError, match=r"student\.json: not JSON"):
        load_artifact(place, "student")


def test_a_json_that_names_foreign_bytes_is_refused(place):
    place.replace("x.safetensors", b"pickle?")
    write_json(place, "x.json", {"safetensors_sha256": hashlib.sha256(b"pickle?").hexdigest()})
    with pytest.raises(ArtifactError, match=r"x\.safetensors: not a safetensors file"):
        load_artifact(place, "x")


def test_nothing_is_committed_when_the_content_cannot_be_stored(place):
    for tensors, metadata, message in (
        (TENSORS, {"x": float("nan")}, "cannot be written as JSON"),
        (TENSORS, {"x": object()}, "cannot be written as JSON"),
        (TENSORS, {"safetensors_sha256": ""}, "reserved"),
        ({"x": np.array(["text"])}, {}, "safetensors"),
    ):
        with pytest.raises(ArtifactError, match=message):
            save_artifact(place, "x", tensors, metadata)
    assert place.list() == {}


def test_metadata_is_read_without_the_tensors(place):
    save_artifact(place, "student", TENSORS, {"id": "s1", "steps": 7})
    place.remove("student.safetensors")
    assert load_metadata(place, "student") == {"id": "s1", "steps": 7}
    with pytest.raises(ArtifactError, match=r"other\.json: missing; make artifact 'other' again"):
        load_metadata(place, "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"safetensors_sha256": "a", "id": 1, "id": 2}', "not JSON .*the key 'id' comes twice"),
        (b'{"safetensors_sha256": "a", "x": {"y": [{"k": 1, "k": 1}]}}', "the key 'k' comes twice"),
        (b'{"safetensors_sha256": "a", "rrl": NaN}', "NaN is not JSON"),
        (b'{"safetensors_sha256": "a", "rrl": -Infinity}', "-Infinity is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x": "\xff"}', "utf-8"),
        (b'["safetensors_sha256"]', "not of an artifact"),
        (b'{"safetensors_sha256": 3}', "not of an artifact"),
        (b"", "not JSON"),
    ],
)
def test_json_of_no_single_meaning_is_refused(place, content, message):
    place.replace("q.json", content)
    place.replace("q.safetensors", b"")
    for load in (load_metadata, load_artifact):
        with pytest.raises(ArtifactError, match=rf"q\.json: .*{message}"):
            load(place, "q")


def test_reports_are_replaced(place):
    with pytest.raises(ObjectMissingError):
        read_json(place, "run/report.json")
    write_json(place, "run/report.json", {"wer": 0.5})
    write_json(place, "run/report.json", {"wer": 0.25, "b": [1, None]})
    assert read_json(place, "run/report.json") == {"wer": 0.25, "b": [1, None]}
    assert place.read_bytes("run/report.json").endswith(b"}\n")
