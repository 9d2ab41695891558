"""What a job of `mvqkd submit` takes along: this program, the run file, and the files that are named. Nothing else.

Files are chosen, not excluded: what nobody named (`.env`, data, checkpoints, `runs/`, `.git`, `.venv`) stays at home.
"""

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import mvqkd
from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_config import RunConfig
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import digest
from mvqkd.storage.location import is_url
from mvqkd.workers.distill.settings import DistillConfig

STAGES = ("plan", "fit", "calibrate", "certify", "extract", "distill", "decode", "run")
LARGEST_UPLOAD = 20 << 20
"""Bytes. The head node keeps what jobs bring in its memory, and the whole program has less than two of these MiB."""
_ROOMS = ("models", "pipeline", "storage", "workers")
_NAMED_FILES = 3
AS_JSON = "--json"


@dataclass(frozen=True, kw_only=True)
class JobFiles:
    """Files on this machine by the names that they have in the job's folder; `run_file` is one of these names."""

    files: dict[str, Path]
    run_file: str

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def copy_to(self, folder: Path) -> None:
        """Lay the files out in a folder, as the job will see them."""
        for name, path in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)

    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for names and contents."""
        whole = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{name}\0{content}\n".encode())
        return whole.hexdigest()[:12]

    def lines(self) -> list[str]:
        """What is taken along and how large it is, for people: the program is one line, other files one each."""
        program = {name: path for name, path in self.files.items() if name.startswith("mvqkd/")}
        size = sum(path.stat().st_size for path in program.values())
        rest = {name: path for name, path in self.files.items() if name not in program}
        return [
            f"mvqkd {mvqkd.__version__}: {len(program)} Python files, {_size(size)}",
            *(f"{name}: {_size(path.stat().st_size)}" for name, path in rest.items()),
        ]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage of a run as a job on a cluster.

    Attributes:
        stage: the command, such as `extract`.
        place: what makes it this run's and no other's: where its results go.
        files: what it takes along.
        arguments: of the command, behind the run file.
    """

    stage: str
    place: Sequence[str]
    files: JobFiles
    arguments: Sequence[str] = ()

    @property
    def prefix(self) -> str:
        """Of the submission ids of this stage of this run; the number of the submission follows."""
        return f"mvqkd-{self.stage}-{digest([self.stage, *self.place])}-"

    @property
    def entrypoint(self) -> str:
        """The command on the head node."""
        return shlex.join(["python", "-m", "mvqkd", self.stage, self.files.run_file, *self.arguments])

    def content(self) -> str:
        """Two submissions with the same are the same job, however its result is printed."""
        return digest([*(word for word in self.arguments if word != AS_JSON), self.files.digest()])


def prepare_job(
    stage: str,
    run_file: Path,
    *,
    overrides: Sequence[str] = (),
    student: str | None = None,
    include: Sequence[Path] = (),
    as_json: bool = False,
) -> Job:
    """A stage of a run file as a job, with the run file read and checked here first.

    Raises:
        ConfigError: there is no such stage, the run file is wrong, or `job_files` or `refuse_own_folders` refuse.
    """
    if stage not in STAGES:
        raise ConfigError(f"{stage}: no stage that can be submitted; there are {', '.join(STAGES)}")
    config = load_config(run_file, overrides)
    refuse_own_folders(config)
    arguments = [word for override in overrides for word in ("--set", override)]
    place = [config.storage.root, config.table.path or ""]
    if stage in ("distill", "decode"):
        name = config.default_student() if student is None else student
        config.student_settings(name)
        arguments += ["--student", name]
        place.append(name)
    elif student is not None:
        raise ConfigError(f"--student {student}: {stage} is not of one student; leave it away")
    if as_json:
        arguments.append(AS_JSON)
    return Job(stage=stage, place=place, files=job_files(run_file, include), arguments=arguments)


def job_files(run_file: Path, include: Sequence[Path]) -> JobFiles:
    """Collect what a job needs.

    Args:
        run_file: of the run.
        include: files of the user's own, or folders, of which the Python files are taken. Those below the working
            directory keep their place in the job's folder, which Python imports from; others lie at its top.

    Raises:
        ConfigError: a file is not there, is hidden (`.env` and the like hold secrets), two have the same name, or all
            together are too large.
    """
    package = Path(mvqkd.__file__).parent
    files = {f"mvqkd/{path.relative_to(package)}": path for path in sorted(package.glob("*.py"))}
    # In a checkout the rooms lie beside the package; in the job they lie in it, as in a wheel.
    home = package if (package / _ROOMS[0]).is_dir() else package.parent
    for room in _ROOMS:
        files |= {f"mvqkd/{path.relative_to(home)}": path for path in _python_files(home / room)}
    run_name = _place(run_file)
    for path in (run_file, *(file for named in include for file in _named(named))):
        name = _place(path)
        if files.get(name, path) != path or name.startswith("mvqkd/"):
            raise ConfigError(f"--include {path}: the job has another file {name}; rename it")
        files[name] = path
    found = JobFiles(files=files, run_file=run_name)
    if found.num_bytes > LARGEST_UPLOAD:
        largest = sorted(files.items(), key=lambda item: -item[1].stat().st_size)[:_NAMED_FILES]
        shown = ", ".join(f"{path} ({_size(path.stat().st_size)})" for _, path in largest)
        raise ConfigError(
            f"the job's files are {_size(found.num_bytes)}, more than the {_size(LARGEST_UPLOAD)} that a job may "
            f"bring; the largest are {shown}: put data and weights into storage that the cluster sees, such as "
            "s3://, and name them in the run file"
        )
    return found


def refuse_own_folders(config: RunConfig) -> None:
    """A job works in a folder of its own on the head node, which is deleted after it.

    Raises:
        ConfigError: a place of the run is named by a relative path, which is another one there.
    """
    places: dict[str, str | None] = {
        "storage.root": config.storage.root,
        "table.path": config.table.path,
        "corpus.root": config.corpus.root,
    }
    for name in config.student_names():
        places |= _places_of(config.student_settings(name)[1])
    wrong = [f"{key} {path}" for key, path in places.items() if path and not _is_full(path)]
    if not _is_full(config.teacher.path) and Path(config.teacher.path).exists():
        wrong.append(f"teacher.path {config.teacher.path}")
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: relative paths, which a job on a cluster takes from a folder of its own that is "
            "deleted after it; write s3://..., or the full path of a folder that all machines mount"
        )


def _places_of(distill: DistillConfig) -> dict[str, str | None]:
    """What a training reads besides the run's own table."""
    places: dict[str, str | None] = {"distill.noise": distill.noise, "distill.init": distill.init}
    places |= {f"distill.targets.{name}.table": target.table for name, target in distill.targets.items()}
    for number, other in enumerate(distill.untranscribed_from):
        where = f"distill.untranscribed_from.{number}"
        places |= {f"{where}.table": other.table, f"{where}.root": other.root}
    return places


def _named(path: Path) -> Iterator[Path]:
    if path.name.startswith("."):
        raise ConfigError(
            f"--include {path}: hidden files hold secrets and histories, so none is uploaded; a cluster gets its "
            "credentials from its own environment"
        )
    if not path.exists():
        raise ConfigError(f"--include {path}: there is no such file or folder; check the path")
    if path.is_file():
        yield path
        return
    found = list(_python_files(path))
    if not found:
        raise ConfigError(f"--include {path}: no Python file in this folder; name other files one by one")
    yield from found


def _python_files(folder: Path) -> Iterator[Path]:
    """Those of a folder and below it, without hidden folders and virtual environments."""
    for path, folders, names in os.walk(folder):
        here = Path(path)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__")) and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(names) if name.endswith(".py") and name[0] != ".")


def _place(path: Path) -> str:
    """Where a file of the user's lies in the job's folder."""
    full, here = path.absolute(), Path.cwd()
    name = full.relative_to(here) if full.is_relative_to(here) and ".." not in full.parts else full.name
    return str(PurePosixPath(name))


def _is_full(path: str) -> bool:
    return is_url(path) or Path(path).is_absolute()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:.1f} kB"
