"""How the custom fields of codes are called, and the error of an export that cannot be."""

import re
from collections.abc import Sequence

from mvqkd.storage.contract import TableContract

FIELD = "codebook_indexes"
"""What icefall's `pruned_transducer_stateless6` reads."""


class ExportError(ValueError):
    """Codes cannot be exported as they are asked for; the message names the place and the remedy."""


def field_names(contracts: Sequence[TableContract], wanted: Sequence[str]) -> tuple[str, ...]:
    """The custom fields of the tables' codes, as icefall's recipes name them.

    One table: `codebook_indexes`. Several layers of one teacher: `codebook_indexes_layer{L}_cb{N}`. Several teachers:
    `codebook_indexes_layer{L}_cb{N}_{teacher}`.

    Args:
        contracts: of the tables.
        wanted: names given for them, which may hold `{layer}`, `{codebooks}` and `{teacher}`; one for all, one for
            each, or none.

    Raises:
        ExportError: a name is none that Lhotse takes, or two are the same.
    """
    if not wanted:
        several = len({contract.teacher_name for contract in contracts}) > 1
        layers = f"{FIELD}_layer{{layer}}_cb{{codebooks}}"
        wanted = [FIELD if len(contracts) == 1 else f"{layers}_{{teacher}}" if several else layers]
    if len(wanted) not in (1, len(contracts)):
        raise ExportError(
            f"--field: {len(wanted)} names for {len(contracts)} tables; give one, or one for each"
        )
    templates = list(wanted) * (len(contracts) if len(wanted) == 1 else 1)
    names = tuple(_filled(t, contract) for t, contract in zip(templates, contracts, strict=True))
    for name in names:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in ("cuts", "recording", "features"):
            raise ExportError(f"--field {name}: no name of a custom field; use letters, digits and _")
    if len(set(names)) != len(names):
        raise ExportError(
            f"--field: two tables have the name {max(names, key=names.count)}; give one for each with --field"
        )
    return names


def _filled(template: str, contract: TableContract) -> str:
    values = {
        "layer": contract.layer,
        "codebooks": contract.num_codebooks,
        "teacher": re.sub(r"[^A-Za-z0-9]+", "_", contract.teacher_name).strip("_"),
    }
    try:
        return template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ExportError(
            f"--field {template}: only {{layer}}, {{codebooks}} and {{teacher}} are known"
        ) from error
