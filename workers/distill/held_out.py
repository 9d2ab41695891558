"""The word error rate of a held-out part of the training table, while a student is trained.

Shape suffixes: B utterances.
"""

from collections.abc import Sequence

import jiwer
import torch
from torch.nn.utils.rnn import pad_sequence

from mvqkd.models.students.base import Student
from mvqkd.models.students.units import Units
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import decoded_batches, length_sorted_batches
from mvqkd.workers.distill.examples import Example, ExampleMaker, RowToMake
from mvqkd.workers.distill.rows import RowKey, Rows, Source


class HeldOut:
    """Recognizes utterances that are not trained on.

    Args:
        keys: rows of this rank, of the first source.
        sources: the tables.
        make: features of a row, without noise and targets.
        units: of the student.
        batch_seconds: upper bound of a padded batch.
        threads: that load ahead.
    """

    def __init__(
        self,
        keys: Sequence[RowKey],
        sources: Sequence[Source],
        make: ExampleMaker,
        units: Units,
        *,
        batch_seconds: float,
        threads: int,
    ) -> None:
        self._make, self._units, self._threads = make, units, threads
        self.left_out: dict[str, str] = {}
        rows = Rows(sources=sources, columns=make.columns, keep=1)
        found = [(key, rows(key)) for key in sorted(keys)]
        self._batches = length_sorted_batches(
            [RowToMake(key=key, row=row, transcribed=False) for key, row in found],
            [row["duration"] for _, row in found],
            batch_seconds=batch_seconds,
        )

    @property
    def last_problem(self) -> str:
        """Of an utterance that was left out, for a message."""
        if not self.left_out:
            return "its transcripts have no words"
        cut_id, problem = next(reversed(self.left_out.items()))
        return f"the last one: {cut_id}: {problem}"

    @torch.no_grad()
    def errors(self, student: Student) -> tuple[int, int]:
        """Word errors and words of the references, of greedy search.

        Audio that cannot be read counts for neither, and is named in `left_out`.
        """
        device = next(student.parameters()).device
        references: list[str] = []
        hypotheses: list[str] = []
        student.eval()
        loaded = decoded_batches(self._batches, self._make, threads=self._threads, begin=self._make.begin)
        for batch, results in zip(self._batches, loaded, strict=True):
            examples: list[Example] = []
            for item, result in zip(batch, results, strict=True):
                if isinstance(result, UtteranceError):
                    self.left_out[result.cut_id] = result.problem
                else:
                    examples.append(result)
                    references.append(" ".join(item.row["text"].split()))
            if examples:
                lengths_B = torch.tensor([len(example.features_TF) for example in examples], device=device)
                features = pad_sequence([example.features_TF for example in examples], batch_first=True)
                units = student.greedy(features.to(device), lengths_B)
                hypotheses += [" ".join(self._units.decode(found).split()) for found in units]
        if not references:
            return 0, 0
        measured = jiwer.process_words(references, hypotheses)
        errors = measured.substitutions + measured.deletions + measured.insertions
        return errors, sum(len(reference.split()) for reference in references)
