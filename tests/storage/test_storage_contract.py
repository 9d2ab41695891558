from dataclasses import asdict, replace

import pytest

from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError


def test_json_round_trip_and_digest(contract):
    again = TableContract.from_json(contract.to_json())
    assert again == contract and again.digest() == contract.digest() and len(contract.digest()) == 64
    assert replace(contract, layer=7).digest() != contract.digest()
    assert replace(contract, frame_rate_hz=50).to_json() == contract.to_json(), "50 and 50.0 are one rate"


def test_the_digest_is_stable_over_versions(contract):
    assert contract.digest() == "f8a0b8c4762a293a1cbce246e4e033c604561c95efe4f76c5fcdd4edad74a0ae"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", -1), ("layer", 1.0), ("layer", True), ("num_codebooks", 0), ("codebook_size", 257),
        ("codebook_size", 1), ("frame_rate_hz", 0.0),
        ("frame_rate_hz", float("nan")), ("frame_offset_s", "0"),
        ("sample_rate_hz", 0), ("teacher_name", None), ("schema_version", 0), ("payload", "x"), ("dim", 8),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(contract, field, value):
    with pytest.raises(ContractError, match=field):
        replace(contract, **{field: value})


def test_a_difference_names_field_values_and_remedy(contract):
    contract.require_same(replace(contract), where="x.parquet")
    with pytest.raises(ContractError, match=r"x.parquet: made with layer = 7, but 6 is expected.*re-extract"):
        contract.require_same(replace(contract, layer=7), where="x.parquet")
    for name, value in asdict(contract).items():
        if name in ("payload", "dim"):
            continue  # a contract of codes has but one value of them
        other = replace(contract, **{name: value + (1 if not isinstance(value, str) else "x")}) \
            if name != "codebook_size" else replace(contract, codebook_size=128)  # fmt: skip
        with pytest.raises(ContractError, match=name):
            contract.require_same(other, where="x")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"layer": 3}', '"x"'])
def test_foreign_json_is_refused(text):
    with pytest.raises(ContractError, match=r"^t\.json: "):
        TableContract.from_json(text, where="t.json")
