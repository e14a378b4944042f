"""W&B that cannot be reached, or cannot write: one line, a complete row, and no long wait."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import Commands, row_of

WORDS = ("device=cpu", "train.epochs=1", "method=none", "auditor=[accuracy]", "objective=test_accuracy", "store=store")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    opened = Commands(tmp_path_factory.mktemp("mirror"))
    yield opened
    opened.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes every call and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[socket.socket] = []

        def listen() -> None:
            while True:
                try:
                    calls.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for call in calls:
            call.close()


def assert_not_mirrored(commands: Commands, said: str, *words: str, **environment: str) -> None:
    finished = commands(*WORDS, *words, **environment)
    row = row_of(finished, commands.folder)  # its status is 0, and the last line the row's file
    lines = [line for line in finished.err.splitlines() if "epoch" not in line and "[wandb.login()]" not in line]
    assert len(lines) == 1, finished.err
    assert lines[0].startswith(f"wandb: row {row['id']} was not mirrored (")
    assert said in lines[0]
    assert lines[0].endswith("; run again to try again")
    assert not (commands.folder / "store" / "wandb").exists()


def test_a_mirror_that_nobody_answers_for_is_given_up(commands: Commands, silent: str) -> None:
    key = {"WANDB_API_KEY": "0123456789" * 4, "WANDB_INIT_TIMEOUT": "2"}
    assert_not_mirrored(commands, "", "wandb.mode=online", WANDB_BASE_URL=silent, **key)
    closed = "http://127.0.0.1:9"
    assert_not_mirrored(commands, "refused", "wandb.mode=online", WANDB_BASE_URL=closed, **key)


def test_a_mirror_without_a_key_is_given_up(commands: Commands, silent: str) -> None:
    nowhere = {"WANDB_BASE_URL": silent, "HOME": str(commands.folder), "NETRC": str(commands.folder / "none")}
    assert_not_mirrored(commands, "", "wandb.mode=online", WANDB_INIT_TIMEOUT="2", **nowhere)


def test_a_mirror_that_cannot_be_written_is_given_up(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        assert_not_mirrored(commands, "", "wandb.mode=offline", f"wandb.dir={place}")
