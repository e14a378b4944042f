"""What the targets of the Makefile do when something goes wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from laws import ROOT


@pytest.mark.parametrize(("faulty", "fails"), [("a.py", True), ("b.py", True), (None, False)])
def test_a_benchmark_that_fails_fails_the_target_and_stops_no_other(
    faulty: str | None, fails: bool, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", ".venv/run"):  # the last one newest: nothing is to be installed
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "benchmarks").mkdir()
    for name in ("a.py", "b.py"):
        (tmp_path / "benchmarks" / name).write_text(f"print('ran {name}'); raise SystemExit({int(name == faulty)})")
    command = ["make", "bench", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0) == fails
    assert done.stdout.count("ran") == 2
