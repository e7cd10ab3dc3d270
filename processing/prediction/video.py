"""Reads the frames of video files one at a time with PyAV (the extra `video`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp")


def is_video(path: str) -> bool:
    """Whether a path has the suffix of a video file."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """
    Reads the frames of a video one at a time.

    Args:
        path (`str`): A video file.
        step (`int`, *optional*, defaults to 1): Only frames whose number is a multiple of `step` are returned.

    Returns:
        An iterator over pairs of a frame number, counted from 0, and the upright frame: RGB pixels of `(height, width,
        3)`, `uint8`.

    Raises:
        OSError: if the file is missing, is not a video, or is damaged. Frames before the damage are returned first.
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
    """Rotates a frame counterclockwise by the degrees in the file, which phones write there."""
    return np.ascontiguousarray(np.rot90(pixels, k=round(rotation / 90)))
