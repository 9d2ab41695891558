"""What happens to the command: killed, asked to end, started twice. The same command goes on where it stopped."""

import signal
import subprocess
import time

import pytest
import ray
from faults_rig import Faults
from mischief import Mischief

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


def start(faults: Faults, mischief: Mischief) -> subprocess.Popen[str]:
    """The command, on the Ray of these tests."""
    on_this = faults.with_keys("cluster", address=ray.get_runtime_context().gcs_address)
    return on_this.start(mischief)


def wait_for_shards(faults: Faults, number: int, command: subprocess.Popen[str]) -> None:
    while len(faults.committed()) < number:
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("sent", "code", "place"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "on_s3"),
        (signal.SIGTERM, 143, "on_s3"),
        (signal.SIGTERM, 143, "local"),
        (signal.SIGINT, 130, "local"),
    ],
)
def test_a_command_that_is_ended_goes_on_where_it_stopped(
    request: pytest.FixtureRequest, sent: signal.Signals, code: int, place: str
) -> None:
    faults: Faults = request.getfixturevalue(place)
    mischief = faults.mischief(slow_s=0.3)
    command = start(faults, mischief)
    wait_for_shards(faults, 2, command)
    command.send_signal(sent)
    _, said = command.communicate()
    assert command.returncode == code
    if sent != signal.SIGKILL:
        assert said.endswith("mvqkd: interrupted; the same command goes on where it stopped\n")
    before = faults.committed()
    assert 2 <= len(before) < faults.rig.num_shards
    summary = faults.extract(faults.mischief())
    # Actors of a killed driver may have finished what they had in hand.
    assert len(before) <= summary["shards_found_done"] < faults.rig.num_shards
    mischief.computed()
    faults.check()


def test_two_commands_on_the_same_run_both_end_well(faults: Faults) -> None:
    mischief = faults.mischief(slow_s=0.1)
    commands = [start(faults, mischief) for _ in range(2)]
    for command in commands:
        _, said = command.communicate()
        assert command.returncode == 0, said
    mischief.computed()
    faults.check()
    again = faults.extract(faults.mischief())
    assert (again["shards_extracted"], again["table"]["shards"]) == (0, faults.rig.num_shards)
