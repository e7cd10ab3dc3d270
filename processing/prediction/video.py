"""The frames of video files, read one at a time by PyAV (the extra `video`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp")


def is_video(path: str) -> bool:
    """Whether a name is that of a video file."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """
    Read a video without keeping more than a frame of it.

    Args:
        path (`str`): A video file.
        step (`int`, *optional*, defaults to 1): Gives every frame whose number is a multiple of it.

    Returns:
        An iterator over the number of each frame, from 0 on, and its upright pixels: `uint8`, RGB, `(height, width,
        3)`.

    Raises:
        OSError: if the file is missing, is no video or is damaged; frames before the damage were given by then.
        ValueError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("reading a video needs PyAV: pip install 'jmceln[video]'") from error
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise OSError("the file has no video in it")
            for number, frame in enumerate(container.decode(video=0)):
                if number % step == 0:
                    yield number, upright(frame.to_ndarray(format="rgb24"), frame.rotation)
    except av.FFmpegError as error:
        raise OSError(f"the video cannot be read: {error}") from error


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """A frame turned counterclockwise by the degrees that the file asks for, as phones do."""
    return np.ascontiguousarray(np.rot90(pixels, k=round(rotation / 90)))
