"""Where a student's weights come from before the first step, and which of them are trained at all.

Shape suffixes: B utterances, T feature frames, F feature bins.
"""

from collections.abc import Mapping

import torch

from mvqkd.models.distillation.heads import TargetSpec
from mvqkd.models.distillation.model import DistillationModel
from mvqkd.models.students.base import Student
from mvqkd.storage.artifacts import load_artifact
from mvqkd.storage.location import Location
from mvqkd.workers.distill.student_record import NAME, load_record


def start_from(student: Student, location: Location) -> list[str]:
    """Give a student the weights of a trained one, but for those that its training did not reach.

    A student that was trained on codes alone has an encoder, but an output that was never trained, perhaps of other
    units; so these weights stay as they are. All others must be there in the same shape.

    Args:
        student: not trained yet.
        location: folder of the trained one.

    Returns:
        Names of the weights that stay as they are.

    Raises:
        ArtifactError: there is no student, or a damaged one.
        ValueError: the other one's weights are of another shape, or were trained on other features.
    """
    arrays, _ = load_artifact(location, NAME)
    record = load_record(location)
    untrained = set(record.untrained)
    features = record.student.get("features", "log_mel")
    if features != student.feature_kind:
        raise ValueError(
            f"distill.init {location.url}: was trained on features {features}, this student takes "
            f"{student.feature_kind}; give both the same student.features"
        )
    own = student.state_dict()
    taken, stay = {}, []
    for name, tensor in own.items():
        if name in untrained or name not in arrays:
            stay.append(name)
        elif tuple(arrays[name].shape) != tuple(tensor.shape):
            raise ValueError(
                f"distill.init {location.url}: {name} is of shape {tuple(arrays[name].shape)} there and "
                f"{tuple(tensor.shape)} here; give both students the same sizes and units"
            )
        else:
            taken[name] = torch.from_numpy(arrays[name].copy())
    if not taken:
        raise ValueError(
            f"distill.init {location.url}: none of its weights belongs to this student; it is of another kind"
        )
    student.load_state_dict(taken, strict=False)
    return stay


def freeze_unreached(model: DistillationModel, specs: Mapping[str, TargetSpec]) -> None:
    """Let only those weights be trained that the heads' losses reach: those of the layers below them.

    Weights without a gradient break distributed training, would be decayed to nothing, and are not to be taken for
    trained ones.
    """
    from mvqkd.workers.distill.trainer import silence

    training = model.training
    model.eval()
    batch = silence(model, specs, transcribed=False)
    features_BTF = torch.stack([example.features_TF for example in batch.examples])
    targets = {name: torch.stack([example.targets[name] for example in batch.examples]) for name in specs}
    model(features_BTF, torch.tensor([features_BTF.shape[1]]), None, None, targets).total.backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    model.train(training)


def untrained(student: Student) -> tuple[str, ...]:
    """Names of the weights that are not trained."""
    return tuple(name for name, parameter in student.named_parameters() if not parameter.requires_grad)
