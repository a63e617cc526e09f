"""Fuzz targets: what there is, how each is built, and one bounded run of it.

A target is ``fuzz_<name>.c`` (libFuzzer over csrc/, address and undefined-behaviour sanitizers;
its first line names the sources to link: ``/* sources: csrc/foo.c */``) or ``fuzz_<name>.py``
(``one_input(data)`` under atheris, with the extensions instrumented). Seeds lie in
``corpus/<name>``. What a run finds beyond them goes to the build directory, never into
the checkout.
"""

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
C_FLAGS = [
    "-g",
    "-O1",
    "-std=gnu11",
    "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
    "-Icsrc",
]
# What an extension needs so that its edges count and its memory errors abort.
EXTENSION_FLAGS = "-g -O1 -fno-omit-frame-pointer -fsanitize=address,fuzzer-no-link"


class FuzzError(Exception):
    """A target could not be built or run; str() is what the tool said."""


@dataclass(frozen=True)
class Result:
    """One run: how many inputs were tried, the edges covered, and what broke (None: nothing)."""

    target: str
    executions: int
    edges: int
    seconds: float
    failure: str | None


@dataclass(frozen=True)
class Target:
    """One untrusted input of the project and the code that reads it."""

    name: str
    source: Path

    @property
    def is_c(self) -> bool:
        """Whether the target is a libFuzzer program rather than a Python function."""
        return self.source.suffix == ".c"

    @property
    def corpus(self) -> Path:
        """The committed seeds."""
        return HERE / "corpus" / self.name

    def command(self, defines: tuple[str, ...] = ()) -> list[str]:
        """Build what is missing; the argument vector that runs the target."""
        if self.is_c:
            return [str(self._build_c(defines))]
        return [sys.executable, "-m", "tests.fuzz.drive", self.name, str(build_extensions())]

    def environment(self) -> dict[str, str]:
        """The environment of a run: the sanitizer's run time has to be there before Python is."""
        environment = dict(os.environ)
        environment["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"
        if self.is_c:
            environment["ASAN_OPTIONS"] = "detect_leaks=1:allocator_may_return_null=1"
            return environment
        atheris = importlib.import_module("atheris")  # by name: it ships no types
        environment["LD_PRELOAD"] = str(Path(atheris.path()) / "asan_with_fuzzer.so")
        environment["PYTHONMALLOC"] = "malloc"  # so that the sanitizer sees every object
        return environment

    def run(
        self, *, seconds: int, runs: int | None = None, defines: tuple[str, ...] = ()
    ) -> Result:
        """Fuzz for ``seconds``, or with ``runs=0`` only replay the seeds."""
        work = BUILD / "found" / self.name
        work.mkdir(parents=True, exist_ok=True)
        flags = [
            "-print_final_stats=1",
            "-timeout=25",
            "-rss_limit_mb=4096",
            f"-artifact_prefix={work}/",
            f"-max_total_time={seconds}",
        ]
        if runs is not None:
            flags.append(f"-runs={runs}")
        else:
            grown = BUILD / "corpus" / self.name
            grown.mkdir(parents=True, exist_ok=True)
            flags.append(str(grown))
        if self.corpus.is_dir():
            flags.append(str(self.corpus))
        done = subprocess.run(
            [*self.command(defines), *flags],
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + 300,
            check=False,
        )
        return self._result(done.stdout.decode(errors="replace"), done.returncode)

    def _result(self, text: str, code: int) -> Result:
        covered = [int(n) for n in re.findall(r"\bcov: (\d+)", text)]
        done = re.search(r"Done (\d+) runs in (\d+) second", text)
        units = re.search(r"number_of_executed_units:\s*(\d+)", text)
        executions = int(done[1]) if done else int(units[1]) if units else 0
        failure = None
        if code != 0:
            lines = text.splitlines()
            verdict = [line for line in lines if "Sanitizer: " in line][:2]
            failure = "\n".join([f"exit code {code}:", *verdict, *lines[-40:]])
        elif not done:
            failure = "the run did not end as a fuzz run does:\n" + text[-2000:]
        return Result(
            self.name, executions, max(covered, default=0), float(done[2]) if done else 0, failure
        )

    def _build_c(self, defines: tuple[str, ...]) -> Path:
        first = self.source.read_text().splitlines()[0]
        found = re.fullmatch(r"/\* sources: (.*) \*/", first)
        if not found:
            raise FuzzError(f"{self.source}: the first line must name its sources")
        sources = [ROOT / name for name in found[1].split()]
        headers = sorted((ROOT / "csrc").glob("*.h"))
        headers += sorted({h for s in sources for h in s.parent.glob("*.h")})
        content = hashlib.sha256(" ".join((*C_FLAGS, *defines)).encode())
        for path in (self.source, *sources, *headers):
            content.update(path.read_bytes())
        program = BUILD / f"{self.name}-{content.hexdigest()[:16]}"
        if not program.exists():
            program.parent.mkdir(parents=True, exist_ok=True)
            fresh = program.with_suffix(f".{os.getpid()}")
            _tool(
                [
                    "clang",
                    *C_FLAGS,
                    *(f"-D{name}" for name in defines),
                    str(self.source),
                    *map(str, sources),
                    "-o",
                    str(fresh),
                    "-lm",
                    "-lz",
                    "-lzstd",
                ]
            )
            fresh.rename(program)
        return program


def build_extensions() -> Path:
    """Compile every extension with instrumentation, once per content; the result's place."""
    content = hashlib.sha256(EXTENSION_FLAGS.encode())
    sources = [*(ROOT / "csrc").glob("*.[ch]"), *(ROOT / "src").rglob("*.pyx"), ROOT / "setup.py"]
    for path in sorted(sources):
        content.update(path.read_bytes())
    library = BUILD / f"lib-{content.hexdigest()[:16]}"
    if not library.exists():
        fresh = library.with_suffix(f".{os.getpid()}")
        environment = dict(os.environ, CC="clang", CFLAGS=EXTENSION_FLAGS, LDSHARED="clang -shared")
        _tool(
            [
                sys.executable,
                "setup.py",
                "-q",
                "build_ext",
                "--build-lib",
                str(fresh),
                "--build-temp",
                str(BUILD / "temp"),
                "--force",
            ],
            environment,
        )
        try:
            fresh.rename(library)
        except OSError:
            # Another run was first: the same content, so its copy serves as well.
            shutil.rmtree(fresh)
    return library


def all_targets() -> list[Target]:
    """Every target, by name."""
    files = [*HERE.glob("fuzz_*.c"), *HERE.glob("fuzz_*.py")]
    return sorted(
        (Target(path.stem.removeprefix("fuzz_"), path) for path in files), key=lambda t: t.name
    )


def _tool(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FuzzError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
