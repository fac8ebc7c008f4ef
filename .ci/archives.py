"""Refuse an sdist or a wheel that lacks a tracked file of the package or holds a link: archives.py SDIST WHEEL."""

import subprocess
import sys
import tarfile
import zipfile

FOLDERS = ("envs", "solvers", "agents", "serving", "dashboards", "configs")


def main(sdist: str, wheel: str) -> None:
    """Exit with a message at the first archive that is not complete."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "dispatchgym/*.py", "dispatchgym/py.typed", *FOLDERS],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    wanted = {name if name.startswith("dispatchgym/") else f"dispatchgym/{name}" for name in tracked if name}

    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {info.filename for info in archive.infolist() if not info.is_dir()}
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    links = sorted(m.name for m in members if not (m.isfile() or m.isdir()))
    in_sdist = {m.name.partition("/")[2] for m in members}

    if links:
        sys.exit(f"error: the sdist holds links, not files: {', '.join(links)}")
    for archive_name, names in (("wheel", in_wheel), ("sdist", in_sdist)):
        if missing := sorted(wanted - names):
            sys.exit(f"error: the {archive_name} lacks {', '.join(missing)}; see package-data in pyproject.toml")
    foreign = sorted(n for n in in_wheel if not n.startswith(("dispatchgym/", "dispatchgym-")))
    if foreign:
        sys.exit(f"error: the wheel installs names other than dispatchgym: {', '.join(foreign)}")
    print(f"wheel check: {len(wanted)} tracked files of the package are in the sdist and in the wheel, none is a link")


if __name__ == "__main__":
    main(*sys.argv[1:])
