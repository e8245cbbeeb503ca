"""llama.cpp, built from the source distribution of its Python bindings, for the comparisons in benches/.

Works in target/llama.cpp (700 MB; half an hour on 4 shared cores). What is there already is not made again, unless an
option changes it: remove the folder to start afresh.
"""

import os
import re
import shutil
import subprocess
import tarfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = ROOT / "target" / "llama.cpp"

# The source distribution holds llama.cpp's source, its tools and the bindings, all of one version.
PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
# What the scripts import and build with. The bindings themselves are used from the source distribution.
REQUIREMENTS = HERE / "requirements.txt"

# As llama.cpp is built by default for the machine at hand, without what is not measured.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "GGML_CCACHE": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_METAL": "OFF",
    "GGML_BLAS": "OFF",
    "GGML_ACCELERATE": "OFF",
}

# The same by name, but for AMX: where a hypervisor shows it and forbids configuring its tiles, llama.cpp dies of it.
INSTRUCTION_SETS = "SSE42 AVX AVX2 BMI2 FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16".split()
WITHOUT_AMX = {"GGML_NATIVE": "OFF"} | {f"GGML_{name}": "ON" for name in INSTRUCTION_SETS}

ENVIRONMENT = CACHE / "venv"
SOURCE = CACHE / f"llama_cpp_python-{VERSION}"
BUILD = CACHE / f"build-{VERSION}"
TOOLS = BUILD / "bin"


def scripts(environment):
    """Where a virtual environment has its programs."""
    return environment / ("Scripts" if os.name == "nt" else "bin")


SCRIPTS = scripts(ENVIRONMENT)
PYTHON = SCRIPTS / "python"


def call(*command, **options):
    """Runs a command, and stops where it fails."""
    command = [str(part) for part in command]
    if subprocess.run(command, **options).returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")


def install(environment=ENVIRONMENT, requirements=REQUIREMENTS, **options):
    """A virtual environment with what the requirements list. Other options are those of the calls."""
    wanted = requirements.read_text(encoding="utf-8")
    stamp = environment / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    environment.parent.mkdir(parents=True, exist_ok=True)
    venv.create(environment, with_pip=True, clear=True)
    call(scripts(environment) / "python", "-m", "pip", "install", "--quiet", "-r", requirements, **options)
    stamp.write_text(wanted, encoding="utf-8")


def fetch():
    """The source distribution, unpacked."""
    if SOURCE.exists():
        return
    downloads = CACHE / "downloads"
    command = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    call(*command, "--dest", downloads, f"{PACKAGE}=={VERSION}")
    unpacked = CACHE / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(downloads / f"{SOURCE.name}.tar.gz") as archive:
        archive.extractall(unpacked)
    (unpacked / SOURCE.name).rename(SOURCE)
    unpacked.rmdir()


def build(jobs, *tools, amx=True, **options):
    """These tools, and with them the shared library that the bindings load. Other options are those of the calls."""
    # Its scripts ask git for a commit: they must not find that of this repository.
    settings = os.environ | {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "GIT_CEILING_DIRECTORIES": str(CACHE),
    }
    defines = [f"-D{key}={value}" for key, value in (OPTIONS | ({} if amx else WITHOUT_AMX)).items()]
    source = SOURCE / "vendor" / "llama.cpp"
    call(SCRIPTS / "cmake", "-S", source, "-B", BUILD, "-G", "Ninja", *defines, env=settings, **options)
    call(SCRIPTS / "ninja", "-C", BUILD, "-j", jobs, *tools, env=settings, **options)


def bindings():
    """The environment variables under which PYTHON finds the bindings and their library."""
    return os.environ | {
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LLAMA_CPP_LIB_PATH": str(TOOLS),
    }


def version():
    """What is measured: the package, and llama.cpp's commit as the package's changelog names it."""
    text = (SOURCE / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition(f"## [{VERSION}]")[2].partition("\n## ")[0]
    commit = re.search(r"llama\.cpp@([0-9a-f]+)", section)
    return f"{PACKAGE} {VERSION}, llama.cpp {commit.group(1) if commit else 'of its own version'}"
