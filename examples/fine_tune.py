"""Fine-tune the photographs' model on photos, masks and texts of your own: python examples/fine_tune.py FOLDER"""

import sys

from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoProcessor, EarlyStoppingCallback, Trainer, TrainingArguments

from processing.data.referring_datasets import load_referring_dataset
from processing.training.collator import ReferringCollator
from processing.training.frozen_parts import freeze_batch_norm_statistics
from processing.training.trainer_metrics import TrainerMetrics


def fine_tune(folder, output_dir="runs/my_model", name="checkpoints/jmceln-photos", lora_rank=0, **settings):
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    freeze_batch_norm_statistics(model)
    if lora_rank:
        model = get_peft_model(model, LoraConfig(r=lora_rank, target_modules="all-linear"))
    schedule = {"num_train_epochs": 20, "learning_rate": 5e-5, "per_device_train_batch_size": 4, **settings}
    saves = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1}
    needed = {"remove_unused_columns": False, "batch_eval_metrics": True, "label_names": ["labels"]}
    metrics = TrainerMetrics()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir, **schedule, **saves, **needed),
        train_dataset=load_referring_dataset(folder, "train"),
        eval_dataset=load_referring_dataset(folder, "val"),
        data_collator=ReferringCollator(processor),
        processing_class=processor,
        preprocess_logits_for_metrics=metrics.reduce_logits,
        compute_metrics=metrics,
        callbacks=[EarlyStoppingCallback(3)],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    fine_tune(sys.argv[1])
