"""The init's text building and the agent port's line reader, under sanitizers."""

import subprocess

from .conftest import Build


def test_text_and_lines(host_program: Build) -> None:
    program = host_program("text_tool", ["text", "agent_lines"])
    assert subprocess.run([str(program)], check=True, stdout=subprocess.PIPE).stdout == b"ok\n"
