"""The regulariser's tests on the published repository's stack: Python 3.8, torch 1.10.2, Lightning 1.5.9 (`make test-old`).

Makes a virtual environment from requirements.txt once, lays out a tree (stand-ins for the published repository, committed; on top of it
the patch, by git am; the tests), runs the tests there and says how many ran. Skips, saying so, only where there is no Python 3.8.
Needs nothing but the standard library of any Python 3.
"""
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
VENV = REPOSITORY / ".venv-old"
TREE = REPOSITORY / "build" / "old-stack"
PATCH = REPOSITORY / "patches" / "0001-locality-regularizer.patch"
LISTED = HERE / "requirements.txt"
IDENTITY = ["-c", "user.name=stand-in", "-c", "user.email=stand-in@example.invalid", "-c", "commit.gpgsign=false"]

# Tests that go along as they are. tests/regularization/test_configs.py stays behind: it compares yaml files with twins that the patch does not carry.
SHARED_TESTS = ["tests/__init__.py", "tests/conftest.py", "tests/regularization", "tests/patches/__init__.py", "tests/patches/agreement.py",
                "tests/patches/data", "tests/patches/test_agreement.py", "tests/patches/test_order.py"]  # fmt: skip
LEFT_BEHIND = ["tests/regularization/test_configs.py"]
# What those import, in the form that the published repository allows.
IN_PLACE_OF = {"lacking.py": "conftest.py", "tiny.py": "tests/models/diffusion/tiny.py", "tiny_runs.py": "tests/regularization/tiny_runs.py"}


def python_3_8():
    """A Python 3.8: named by PYTHON38, on the path, or one of pyenv's; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [os.environ.get("PYTHON38"), shutil.which("python3.8"), *sorted(map(str, pyenv.glob("3.8.*/bin/python3.8")), reverse=True)]
    for candidate in filter(None, found):
        asked = subprocess.run([candidate, "-c", "import sys, venv; print(*sys.version_info[:2])"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if asked.stdout.split() == [b"3", b"8"]:
            return candidate
    return None


def environment(python):
    """The virtual environment's Python; installed again whenever the list has changed."""
    inside = VENV / "bin" / "python"
    stamp = VENV / "installed"
    wanted = hashlib.sha256(LISTED.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", str(VENV)], check=True)
        install = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "pip<24.1"], check=True)  # later ones refuse the metadata of Lightning 1.5.9
        subprocess.run([*install, "--no-deps", "--requirement", str(LISTED)], check=True)
        stamp.write_text(wanted)
    return str(inside)


def git(*arguments):
    subprocess.run(["git", *IDENTITY, *arguments], cwd=str(TREE), check=True, stdout=subprocess.DEVNULL)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(str(source), str(target), ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(str(source), str(target))


def lay_out():
    """The published repository's stand-ins with the patch applied, as a user would have them, and the tests beside them."""
    if TREE.exists():
        shutil.rmtree(str(TREE))
    copy(HERE / "original", TREE)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "stand-ins")
    git("am", "--quiet", str(PATCH))
    (TREE / "pytest.ini").write_text("[pytest]\npythonpath = .\n")  # else the settings of the repository around the tree would hold
    for name in SHARED_TESTS:
        copy(REPOSITORY / name, TREE / name)
    for name in LEFT_BEHIND:
        (TREE / name).unlink()
    for name, target in IN_PLACE_OF.items():
        copy(HERE / name, TREE / target)
    for source in [*HERE.glob("test_*.py"), HERE / "recorded.py", HERE / "text"]:
        copy(source, TREE / "tests" / "old" / source.name)


def main(arguments):
    python = python_3_8()
    if python is None:
        print("test-old: SKIPPED, no Python 3.8 here (pyenv install 3.8 brings one; PYTHON38 names one)")
        return 0
    inside = environment(python)
    lay_out()
    cases = [REPOSITORY.parent / "shared" / "oracle" / "golden", REPOSITORY / "tests" / "golden" / "data"]
    known = dict(os.environ, RECORDED_CASES=os.pathsep.join(map(str, cases)))
    command = [inside, "-m", "pytest", "-q", "-rs", "--import-mode=importlib", "-p", "no:cacheprovider", *(arguments or ["tests"])]
    run = subprocess.Popen(command, cwd=str(TREE), env=known, stdout=subprocess.PIPE, text=True)
    last = ""
    for line in run.stdout:
        sys.stdout.write(line)
        last = line if line.strip() else last
    words = ("passed", "(?:failed|errors?)", "skipped", "deselected")
    passed, failed, skipped, left_out = (sum(map(int, re.findall(rf"(\d+) {word}", last))) for word in words)
    print(f"test-old: {passed + failed} tests ran under Python 3.8, torch 1.10.2 and Lightning 1.5.9, {failed} failed; "
          f"{left_out} ask for what that stack lacks (tests/old/lacking.py), {skipped} were skipped for what is said above")  # fmt: skip
    run.wait()
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
