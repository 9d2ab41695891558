"""The log of a soak as a table, in the form that the documentation has it."""

from typing import Any

WORDS = {
    "kill": "worker killed in the middle of a shard",
    "kill_after_put": "worker killed between PUT and report",
    "deadly": "shard that always kills its worker",
    "hang": "shard that hangs",
    "raise": "error in a worker",
    "term": "worker asked to end (SIGTERM)",
    "command killed": "command killed",
    "command asked to end": "command asked to end (SIGTERM)",
    "second command": "second command on the same run",
    "machine lost": "machine lost",
    "store restarted": "S3 server killed and started again",
    "keys changed": "keys replaced",
    "SlowDown": "503 SlowDown",
    "connection broken": "connection broken off",
    "audio damaged": "audio damaged after planning",
    "audio replaced": "audio replaced after planning",
}


def print_report(report: dict[str, Any]) -> None:
    """What happened how often, what came of it, and the memory of the undisturbed run."""
    print(
        f"{report['shards']} shards, {report['storage']}, chance {report['chance']:g}, seed {report['seed']}\n"
    )
    print("| what happened | times |\n|---|---:|")
    for kind, times in sorted(report["happened"].items(), key=lambda pair: list(WORDS).index(pair[0])):
        print(f"| {WORDS[kind]} | {times} |")
    print()
    print("| what came of it | |\n|---|---:|")
    for words, value in (
        ("shards lost, or twice in the table", 0),
        ("shards computed although they were in the table", 0),
        ("table beside that of the undisturbed run", "equal, byte for byte"),
        ("commands until it was done", report["commands"]),
        ("shards set aside on the way", report["set_aside"]),
        ("times that a shard was computed", report["computed"]),
        ("seconds undisturbed", round(report["undisturbed_s"])),
        ("seconds disturbed", round(report["disturbed_s"])),
    ):
        print(f"| {words} | {value} |")
    print()
    print("| memory, undisturbed | shards done | command | largest worker |\n|---|---:|---:|---:|")
    for name, row in report["memory"].items():
        print(f"| {name} | {row['shards']} | {row['command_mb']:.0f} MB | {row['worker_mb']:.0f} MB |")
