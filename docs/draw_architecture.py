"""Draws docs/architecture.png: python docs/draw_architecture.py"""

from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch


IMAGE, TEXT, FUSION, CASCADE = "#cfe2f3", "#fde2c8", "#d9ead3", "#ead7ee"


def box(axes, x, y, width, height, text, color):
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.05", facecolor=color, edgecolor="#444444")
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, linespacing=1.35)


def arrow(axes, start, end, text="", offset=(0.0, 0.12), style="-|>", bend=0.0):
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={"arrowstyle": style, "color": "#333333", "connectionstyle": f"arc3,rad={bend}"},
    )
    middle = ((start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1])
    axes.text(*middle, text, ha="center", va="center", fontsize=8, color="#333333")


def stage(axes, x, number):
    box(axes, x, 1.0, 3.1, 3.5, "", CASCADE)
    lines = [
        f"stage {number}",
        "write  context ← words, context,\npixels through the last masks",
        "read  pixels ← words, context",
        "mix  pixels ← pixels",
        "predict  referent r, landmarks" + ("\ncompare  with the last masks" if number > 1 else ""),
        "align  m ← a·r + (1 - a)·m" if number > 1 else "m ← r",
    ]
    for index, (text, y) in enumerate(zip(lines, [4.25, 3.65, 3.0, 2.5, 1.95, 1.35], strict=True)):
        weight = "normal" if index else "bold"
        axes.text(x + 1.55, y, text, ha="center", va="center", fontsize=8.5, linespacing=1.25, weight=weight)


def main():
    figure, axes = plt.subplots(figsize=(15.5, 6.4))
    axes.set_xlim(-0.2, 19.2)
    axes.set_ylim(-0.1, 8.0)
    axes.axis("off")

    box(axes, 0, 6.1, 1.3, 1.0, "image", "white")
    box(axes, 2.1, 5.9, 2.3, 1.4, "backbone\n(any AutoBackbone)", IMAGE)
    box(
        axes, 5.9, 5.9, 3.8, 1.4, "pixel decoder\ncoarsest two maps: self-attention\nfiner maps: pixel features", IMAGE
    )
    box(axes, 14.3, 5.9, 2.6, 1.4, "upsampling weights\nof every input pixel", IMAGE)
    box(axes, 0.25, 3.6, 1.5, 0.9, "expression", "white")
    box(axes, 0, 1.4, 2.0, 1.4, "text encoder\n(any AutoModel)", TEXT)
    box(axes, 3.0, 1.0, 2.2, 2.2, "fusion neck\npixels ← words\npixels ← pixels", FUSION)
    arrow(axes, (1.35, 6.6), (2.05, 6.6))
    arrow(axes, (4.45, 6.6), (5.85, 6.6), "strides 4 to 32", (0, 0.2))
    arrow(axes, (9.75, 6.6), (14.25, 6.6), "stride 4", (0, 0.2))
    arrow(axes, (1.0, 3.55), (1.0, 2.85))
    arrow(axes, (2.05, 2.1), (2.95, 2.1), "words", (0, 0.2))
    arrow(axes, (6.2, 5.85), (4.1, 3.25), "strides 16, 32", (-0.95, 0.1))

    for number, x in enumerate((6.0, 10.0, 14.0), start=1):
        stage(axes, x, number)
    arrow(axes, (5.25, 2.45), (5.95, 2.45))
    for x in (9.15, 13.15):
        for y, text in ((3.65, "context"), (2.45, "pixels"), (1.35, "masks")):
            arrow(axes, (x, y), (x + 0.8, y), text, (0, 0.18))
    for start, end, stride in ((6.9, 7.4, "16"), (8.3, 11.0, "8"), (9.4, 14.4, "4")):
        arrow(axes, (start, 5.85), (end, 4.6), f"stride {stride}", (0.65, 0.1))

    box(axes, 17.8, 0.9, 1.3, 0.9, "presence", "white")
    box(axes, 17.8, 3.2, 1.3, 0.9, "mask", "white")
    arrow(axes, (17.15, 1.35), (17.75, 1.35))
    arrow(axes, (17.15, 3.65), (17.75, 3.65))
    arrow(axes, (16.95, 6.3), (18.45, 4.2), "convex\nupsampling", (1.0, 0.55), bend=-0.35)

    axes.text(0, 7.6, "once per image", fontsize=12, weight="bold", color="#1f5c99")
    axes.text(0, 0.2, "once per expression", fontsize=12, weight="bold", color="#5f3b73")
    axes.text(
        6.0,
        0.2,
        "write, read, compare: learnable contextual embedding (LCE).   align: progressive alignment network (PAN), "
        "whose filter a lies in (0, 1) at every pixel.",
        fontsize=9,
    )
    path = Path(__file__).with_name("architecture.png")
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    main()
