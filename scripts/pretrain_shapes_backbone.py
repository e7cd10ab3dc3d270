"""Pretrain a vision backbone for the synthetic benchmark: it learns to predict the attributes of shapes.

    python scripts/pretrain_shapes_backbone.py configs/shapes_backbone.yaml

The backbone is saved in `output_dir`. Pass this folder to `jmceln train` as `vision_model`, as configs/shapes.yaml
does. `scores.json` in it has the accuracy in the cells of each feature map on unseen scenes. If a run is interrupted,
the same command resumes it from its newest checkpoint.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from transformers import AutoConfig, Trainer, TrainingArguments, set_seed

from processing.training.arguments import parse_arguments
from processing.training.attribute_pretraining import AttributeReader, AttributeScenes, attribute_accuracy
from processing.training.checkpoints import newest_intact_checkpoint


@dataclass
class BackboneArguments:
    """The backbone and the scenes."""

    backbone_config: dict | None = field(default=None, metadata={"help": "Fields of the backbone configuration."})
    image_size: int = field(default=96, metadata={"help": "Height and width of the images in pixels."})
    num_validation_images: int = field(default=200, metadata={"help": "Number of scenes for the evaluation."})


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Runs the pretraining that the arguments describe and returns the accuracies on unseen scenes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    classes = (BackboneArguments, TrainingArguments)
    backbone, training = parse_arguments(arguments, __doc__, classes, prog="pretrain_shapes_backbone.py")
    if not backbone.backbone_config or training.max_steps < 1:
        raise ValueError("`backbone_config` or `max_steps` is missing: pass a YAML file with both.")
    set_seed(training.seed)
    training.dataloader_pin_memory = training.device.type != "cpu"
    fields: dict[str, Any] = dict(backbone.backbone_config)
    model = AttributeReader(AutoConfig.for_model(**fields))
    images = training.max_steps * training.train_batch_size * training.world_size
    scenes = AttributeScenes("train", images, training.seed, backbone.image_size)
    trainer = Trainer(model=model, args=training, train_dataset=scenes)
    trainer.train(
        resume_from_checkpoint=training.resume_from_checkpoint or newest_intact_checkpoint(training.output_dir)
    )

    validation = AttributeScenes("validation", backbone.num_validation_images, image_size=backbone.image_size)
    scores = attribute_accuracy(model, validation)
    if trainer.is_world_process_zero():
        model.backbone.save_pretrained(training.output_dir)
        (Path(training.output_dir) / "scores.json").write_text(json.dumps(scores, indent=2), encoding="utf-8")
        for stage, accuracies in zip(model.backbone.out_features, scores, strict=True):
            print(f"{stage}: " + ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in accuracies.items()))
    return scores


if __name__ == "__main__":
    main()
