"""The metric of referring image segmentation, in a folder that `evaluate.load` can load on its own."""
