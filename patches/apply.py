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


# Git's hooks and aliases run programs with these set.
NAMES_ANOTHER_REPOSITORY = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_PREFIX"}


class Refused(Exception):
    """What stands in the way, in words for the user."""


def blob_id(path):
    """Git's name for the content of a file, whatever line ends the checkout gave it; None where there is no file."""
    if not path.is_file():
        return None
    content = path.read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def added_files(patch):
    """Path to blob id of every file that the patch adds. Raises Refused where there is no patch."""
    if not patch.is_file():
        raise Refused(f"no patch {patch}: apply.py and it belong side by side")
    return dict(re.findall(r"^diff --git a/(\S+) b/\1\nnew file mode 100644\nindex 0{40}\.\.([0-9a-f]{40})$", patch.read_text(encoding="utf-8"), re.M))


def git(folder, *arguments):
    """Run git in `folder`, blind to any repository around it or named by the environment. Raises Refused where there is no git."""
    alone = {name: value for name, value in os.environ.items() if name not in NAMES_ANOTHER_REPOSITORY}
    alone.update(GIT_CEILING_DIRECTORIES=str(folder.parent), LC_ALL="C")
    try:
        return subprocess.run(["git", *arguments], cwd=str(folder), env=alone, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Refused("git was not found: install it, or put it on the PATH") from error


def edited_files(folder, files):
    """Tracked files that differ from the commit checked out, but for the patch's own where they are new; none where `folder` is no clone."""
    status = git(folder, "status", "--porcelain", "--untracked-files=no")
    if status.returncode and (folder / ".git").exists():
        raise Refused(f"git cannot read {folder}: {status.stderr.strip()}")
    return [line[3:] for line in status.stdout.splitlines() if not ("A" in line[:2] and line[3:] in files)]


def check_commit(folder, files):
    """Raise Refused unless `folder` is the commit, unchanged but for the files that the patch adds."""
    if not folder.is_dir():
        raise Refused(f"no folder {folder} (looked from {Path.cwd()})")
    edited = edited_files(folder, files)
    if edited:
        raise Refused(f"{folder} has changes of its own ({some(edited)}): commit or stash them first")
    wrong = [name for name, expected in LEANS_ON.items() if blob_id(folder / name) != expected]
    if len(wrong) == len(LEANS_ON):
        raise Refused(f"{folder} is no clone of rinongal/textual_inversion at commit {COMMIT[:10]}: none of the files that the patch leans on is as there")
    if wrong:
        at = git(folder, "rev-parse", "--short=10", "HEAD").stdout.strip() or "unknown"
        raise Refused(f"{folder} is at another commit ({at}; differs: {', '.join(wrong)}). In it: git checkout {COMMIT[:10]}")


def state_of(folder, files):
    """Which of the patch's files are there: "not applied", "applied", or "in part". Raises Refused where there are others under their names."""
    there = {name for name in files if os.path.lexists(str(folder / name))}
    others = sorted(name for name in there if blob_id(folder / name) != files[name])
    if others:
        raise Refused(
            f"{folder} has files under the patch's names that are not this patch's ({some(others)}): another version of it, or edited since. "
            "Undo it with the version that made them, or move them away."
        )
    return "not applied" if not there else "in part" if len(there) < len(files) else "applied"


def missing(folder, files):
    absent = sorted(name for name in files if not (folder / name).exists())
    return f"{folder} has a part of the patch only (missing: {some(absent)}); --undo removes it, and then it can be applied anew"


def some(names):
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def committed(folder, files):
    return bool(git(folder, "ls-tree", "-r", "--name-only", "HEAD", "--", *files).stdout)


def remove(folder, files):
    """Delete those of the files that are there, what Python compiled beside them, and folders that are left empty."""
    for name in files:
        path = folder / name
        if path.is_file():
            path.unlink()
        if name.endswith(".py"):
            shutil.rmtree(str(path.parent / "__pycache__"), ignore_errors=True)
        for parent in path.parents:
            if parent == folder or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()


def apply(folder, files):
    state = state_of(folder, files)
    if state == "applied":
        way_back = "git revert or git reset takes the commit back" if committed(folder, files) else "--undo takes the patch away"
        raise Refused(f"{folder} is patched already; {way_back}")
    if state == "in part":
        raise Refused(missing(folder, files))
    done = git(folder, "apply", "--whitespace=nowarn", str(PATCH))
    if done.returncode:
        remove(folder, files)  # git stops where it fails, and leaves what it has written
        raise Refused(f"git apply failed, and nothing was changed: {done.stderr.strip()}")
    if state_of(folder, files) != "applied":
        raise Refused(f"git apply left {folder} as it was")
    return f"{len(files)} files added to {folder} and verified. {COMMANDS}"


def undo(folder, files):
    if state_of(folder, files) == "not applied":
        raise Refused(f"{folder} is not patched")
    if committed(folder, files):
        raise Refused(f"in {folder} the patch is part of a commit (git am): take that back with git revert or git reset")
    git(folder, "reset", "--quiet", "--", *files)  # where they were staged
    there = [name for name in files if (folder / name).exists()]
    remove(folder, there)
    return f"{len(there)} files removed from {folder}: it is as before"


COMMANDS = "Now, in it: python main.py --base configs/stable-diffusion/v1-finetune_unfrozen_reg.yaml -t --actual_resume FILE ..."


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", help="the clone")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--undo", action="store_true", help="remove the patch's files")
    instead.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    folder = Path(options.dir).resolve()
    try:
        files = added_files(PATCH)
        check_commit(folder, files)
        if options.check:
            state = state_of(folder, files)
            if state == "in part":
                raise Refused(missing(folder, files))
            said = f"{folder} is commit {COMMIT[:10]}; the patch is {state}"
        else:
            said = undo(folder, files) if options.undo else apply(folder, files)
    except Refused as reason:
        print(f"apply.py: {reason}", file=sys.stderr)
        return 1
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
