"""Apply the locality regulariser to a clone of rinongal/textual_inversion at commit 424192de, or take it away again.

    python patches/apply.py DIR            # check that DIR is that commit, add the files, verify them
    python patches/apply.py DIR --undo     # remove them
    python patches/apply.py DIR --check    # only say how things stand

No network. The commit is told by the content of the files on which the patch leans. Needs git, and any Python from 3.8.
"""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PATCH = Path(__file__).resolve().parent / "0001-locality-regularizer.patch"
COMMIT = "424192de1518a358f1b648e0e781fdbe3f40c210"
# What the patch leans on, by git's name for the content.
LEANS_ON = {
    "main.py": "03c7670ddc795dd4569b2ccd8741b9d95f1a2b1d",
    "ldm/util.py": "b24f51c5176d290fa9f4db105627c5724865158d",
    "ldm/data/personalized.py": "7e97064a4c5c495479f84f195e6208ac0cb51b56",
    "ldm/models/diffusion/ddpm.py": "7239e060abda903c78c34d9160102d14cb14760d",
    "ldm/models/diffusion/ddim.py": "fb31215db5c3f3f703f15987d7eee6a179c9f7ec",
    "ldm/modules/diffusionmodules/util.py": "6b5b9dc9e26e8d9fc479bbfdc255db70ad1ac011",
    "ldm/modules/embedding_manager.py": "cbabc4174da38a3cc0f2f5480e0d268172627c3a",
    "ldm/modules/encoders/modules.py": "9b15750108ce1a7d0896bc31e13f2f5b96b85c5a",
}


class Refused(Exception):
    """What stands in the way, in words for the user."""


def blob_id(path):
    """Git's name for the content of a file, whatever line ends the checkout gave it; None where there is no file."""
    if not path.is_file():
        return None
    content = path.read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def added_files(patch):
    """Path to blob id of every file that the patch adds."""
    return dict(re.findall(r"^diff --git a/(\S+) b/\1\nnew file mode 100644\nindex 0{40}\.\.([0-9a-f]{40})$", patch.read_text(encoding="utf-8"), re.M))


def git(folder, *arguments):
    """Run git in `folder`, blind to any repository around it. Raises Refused where there is no git."""
    alone = dict(os.environ, GIT_CEILING_DIRECTORIES=str(folder.parent), LC_ALL="C")
    try:
        return subprocess.run(["git", *arguments], cwd=str(folder), env=alone, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Refused("git was not found: install it, or put it on the PATH") from error


def edited_files(folder):
    """Tracked files that differ from the commit checked out; none where `folder` is no clone."""
    return [line[3:] for line in git(folder, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()]


def check_commit(folder):
    """Raise Refused unless `folder` is the commit, unchanged."""
    if not folder.is_dir():
        raise Refused(f"no folder {folder} (looked from {Path.cwd()})")
    edited = edited_files(folder)
    if edited:
        raise Refused(f"{folder} has changes of its own ({', '.join(edited[:5])}{' …' if len(edited) > 5 else ''}): commit or stash them first")
    wrong = [name for name, expected in LEANS_ON.items() if blob_id(folder / name) != expected]
    if len(wrong) == len(LEANS_ON):
        raise Refused(f"{folder} is no clone of rinongal/textual_inversion at commit {COMMIT[:10]}: none of the files that the patch leans on is as there")
    if wrong:
        at = git(folder, "rev-parse", "--short=10", "HEAD").stdout.strip() or "unknown"
        raise Refused(f"{folder} is at another commit ({at}; differs: {', '.join(wrong)}). In it: git checkout {COMMIT[:10]}")


def state_of(folder, files):
    """Either "not applied" or "applied"; Refused where some of the files are there, or are others."""
    there = {name for name in files if (folder / name).exists()}
    if not there:
        return "not applied"
    wrong = sorted(name for name in files if blob_id(folder / name) != files[name])
    if not wrong:
        return "applied"
    raise Refused(
        f"{folder} has files under the patch's names that are not this patch's ({', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}): another "
        "version of it, or edited since. Undo it with the version that made them, or move them away."
    )


def run_patch(folder, *options):
    done = git(folder, "apply", "--whitespace=nowarn", *options, str(PATCH))
    if done.returncode:
        raise Refused(f"git apply failed: {done.stderr.strip()}")


def apply(folder, files):
    if state_of(folder, files) == "applied":
        raise Refused(f"{folder} is patched already; --undo takes the patch away")
    run_patch(folder)
    if state_of(folder, files) != "applied":
        raise Refused(f"git apply left {folder} as it was")
    return f"{len(files)} files added to {folder} and verified. {COMMANDS}"


def undo(folder, files):
    if state_of(folder, files) == "not applied":
        raise Refused(f"{folder} is not patched")
    tracked = git(folder, "ls-files", "--", *files).stdout.split()
    if tracked:
        raise Refused(f"in {folder} the patch is part of a commit (git am): take that back with git revert or git reset")
    run_patch(folder, "--reverse")
    for compiled in {folder / name for name in files if name.endswith(".py")}:
        shutil.rmtree(str(compiled.parent / "__pycache__"), ignore_errors=True)
        if compiled.parent.is_dir() and not any(compiled.parent.iterdir()):
            compiled.parent.rmdir()
    return f"{len(files)} files removed from {folder}: it is as before"


COMMANDS = "Now, in it: python main.py --base configs/stable-diffusion/v1-finetune_unfrozen_reg.yaml -t --actual_resume FILE …"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", help="the clone")
    parser.add_argument("--undo", action="store_true", help="remove the patch's files")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    folder, files = Path(options.dir).resolve(), added_files(PATCH)
    try:
        check_commit(folder)
        if options.check:
            said = f"{folder} is commit {COMMIT[:10]}; the patch is {state_of(folder, files)}"
        else:
            said = undo(folder, files) if options.undo else apply(folder, files)
    except Refused as reason:
        print(f"apply.py: {reason}", file=sys.stderr)
        return 1
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
