"""The loss scale, evaluation, averaged weights and checkpoints of the trainer."""

import json
from pathlib import Path

import pytest
import torch

from modeling_jmceln import JMCELNModel
from processing.training.arguments import ReferringTrainingArguments
from processing.training.checkpoints import DamagedCheckpointError
from processing.training.collator import ReferringCollator
from processing.training.finite_steps import NonFiniteStepError
from processing.training.image_sampler import DrawnImages, EvaluatedImages, ImageSampler, count_expressions
from processing.training.referring_trainer import ReferringTrainer
from processing.training.trainer_metrics import TrainerMetrics
from tests.processing.canonical_rows import canonical_row
from tests.tiny import tiny_config, tiny_processor


# Unequal numbers of expressions, so that a mean of means is not the mean.
ROWS = [canonical_row(number, sentences) for number, sentences in enumerate([(4, 2), (1,), (2,), (1, 1, 3)])]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(size={"height": 32, "width": 32})


def make_model(**overrides):
    torch.manual_seed(0)
    text = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_config(**overrides)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    config.backbone_config.drop_path_rate = 0.0
    return JMCELNModel(config)


def make_trainer(folder, processor, model=None, rows=ROWS, ema_decay=None, scales=None, **arguments):
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        **arguments,
    }
    training = ReferringTrainingArguments(**arguments)
    expressions, referents = count_expressions(rows)
    return ReferringTrainer(
        model=make_model() if model is None else model,
        args=training,
        train_dataset=DrawnImages(rows),
        eval_dataset=EvaluatedImages(rows, expressions, 3, training.eval_batch_size),
        processing_class=processor,
        data_collator=ReferringCollator(processor),
        train_data_collator=ReferringCollator(processor, training=True),
        train_sampler=ImageSampler(expressions, referents, epoch_unit="images"),
        ema_decay=ema_decay,
        learning_rate_scales=scales,
        preprocess_logits_for_metrics=TrainerMetrics().reduce_logits,
        compute_metrics=TrainerMetrics(),
    )


def test_several_gpus_in_one_process_are_refused(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(ReferringTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="torchrun"):
        make_trainer(tmp_path, processor)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 4), (3, 2)])
def test_accumulated_steps_equal_one_big_batch(tmp_path, processor, batch_size, accumulation):
    # In 64 bits, where the order of sums does not show. SGD, since Adam would hide a wrong scale of the gradients.
    steps = {}
    for size, times in ((4, 1), (batch_size, accumulation)):
        trainer = make_trainer(
            tmp_path,
            processor,
            model=make_model().double(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            optim="sgd",
            max_steps=2,
        )
        collate = trainer.train_data_collator
        trainer.train_data_collator = lambda rows, collate=collate: {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in collate(rows).items()
        }
        trainer.train()
        steps[times] = losses(trainer), [parameter.detach().clone() for parameter in trainer.model.parameters()]
    (whole_losses, whole), (part_losses, parts) = steps[1], steps[accumulation]
    # The model computes its loss in 32 bits.
    assert part_losses == pytest.approx(whole_losses, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_loss_is_the_mean_over_expressions(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    collator = ReferringCollator(processor)
    model = make_model().eval()
    with torch.no_grad():
        by_image = [model(**collator([row])).loss.item() for row in ROWS]
    counts = [len(row["expressions"]) for row in ROWS]
    expected = sum(loss * count for loss, count in zip(by_image, counts, strict=True)) / sum(counts)
    assert expected != pytest.approx(sum(by_image) / 4, rel=1e-3)
    trainer.train()
    assert losses(trainer) == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_does_not_depend_on_the_batch_size(tmp_path, processor, batch_size):
    trainer = make_trainer(tmp_path, processor, per_device_eval_batch_size=batch_size)
    scores = trainer.evaluate()
    collator = ReferringCollator(processor)
    model = make_model().eval()
    counts = [len(row["expressions"]) for row in ROWS]
    with torch.no_grad():
        total = sum(model(**collator([row])).loss.item() * count for row, count in zip(ROWS, counts, strict=True))
    assert scores["eval_loss"] == pytest.approx(total / sum(counts), rel=1e-4)
    assert scores["eval_expressions"] == sum(counts)


@pytest.mark.parametrize(
    ("arguments", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-6),
        ({"bf16": True}, 2e-2),
        # The compiler's own code generation takes minutes; this is all of its way before that.
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-5, marks=pytest.mark.slow),
    ],
    ids=["gradient_checkpointing", "bf16", "torch_compile"],
)
def test_ways_to_save_time_and_memory_leave_the_loss_as_it_is(tmp_path, processor, arguments, tolerance):
    # Two rows of one shape, so that nothing is compiled twice.
    rows = [canonical_row(0, (2, 1)), canonical_row(1, (2, 1))]
    found = []
    for extra in ({}, arguments):
        trainer = make_trainer(tmp_path, processor, rows=rows, max_steps=2, per_device_train_batch_size=2, **extra)
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=tolerance)


def test_encoders_learn_at_their_own_rate(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, scales={"backbone.": 0.0, "text_model.": 0.0})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert not any(name.startswith(("backbone.", "text_model.")) for name in moved)
    assert trainer.state.log_history[0]["learning_rate"] == 1e-3


def test_the_averaged_model_is_scored_and_saved_and_the_other_trained(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, ema_decay=0.9, max_steps=3, save_strategy="steps", save_steps=3)
    trainer.train()
    own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with trainer.averaged_weights():
        average = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert not torch.equal(own["text_projection.weight"], average["text_projection.weight"])
    score = trainer.evaluate()["eval_loss"]
    trainer.weight_average = None
    assert trainer.evaluate()["eval_loss"] != score
    again = make_trainer(tmp_path, processor, ema_decay=0.9, max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again.save_final_model(str(tmp_path / "final"))
    saved = JMCELNModel.from_pretrained(tmp_path / "final").state_dict()
    for name, value in saved.items():
        assert torch.equal(value, average[name]), name
    checkpoint = JMCELNModel.from_pretrained(tmp_path / "checkpoint-3").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in checkpoint.items())


def test_the_best_model_comes_back_as_it_was_scored(tmp_path, processor):
    # At this learning rate the first evaluation is the best.
    trainer = make_trainer(
        tmp_path,
        processor,
        ema_decay=0.5,
        max_steps=3,
        learning_rate=1.0,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    scores = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(scores) != scores[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(scores), rel=1e-6)


def test_pass_after_pass_is_drawn_in_its_order(tmp_path, processor):
    drawn = []
    trainer = make_trainer(tmp_path, processor, per_device_train_batch_size=2, max_steps=6)
    collate = trainer.train_data_collator

    def recording(rows):
        drawn.extend((int(row["image_id"]), row["visit"]) for row in rows)
        return collate(rows)

    trainer.train_data_collator = recording
    trainer.train()
    expected = []
    for epoch in range(3):
        trainer.train_sampler.set_epoch(epoch)
        expected += [tuple(draw) for draw in trainer.train_sampler]
    assert drawn == expected


def test_weights_of_another_model_are_not_taken_up(tmp_path, processor):
    make_trainer(tmp_path, processor, model=make_model(num_stages=3), save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match=r"do not belong to this model.*cascade\.stages\.2"):
        make_trainer(tmp_path, processor).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def poison(trainer, step, monkeypatch, poisoned):
    """Let `poisoned` change the model in the backward pass of a step, which begins as it should."""
    forward = type(trainer.model).forward

    def poisoned_forward(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        if model.training and trainer.state.global_step + 1 == step:
            output.loss = poisoned(output.loss)
        return output

    monkeypatch.setattr(type(trainer.model), "forward", poisoned_forward)


def infinite_gradient(loss):
    # The square root of 0 is 0, and its slope infinite.
    return loss + (loss - loss.detach()).clamp(min=0).sqrt().nan_to_num()


@pytest.mark.parametrize(
    ("poisoned", "reason"),
    [
        (lambda loss: loss * float("nan"), "the loss is nan"),
        (lambda loss: loss * float("inf"), "the loss is inf"),
        (infinite_gradient, "a gradient is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_step_that_is_not_finite_stops_the_run_and_names_its_images(
    tmp_path, processor, monkeypatch, poisoned, reason, max_grad_norm
):
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 4}
    trainer = make_trainer(tmp_path, processor, max_grad_norm=max_grad_norm, **arguments)
    poison(trainer, 2, monkeypatch, poisoned)
    with pytest.raises(NonFiniteStepError, match=rf"Step 2: {reason}.*non_finite_step_2_process_0\.json"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())
    record = json.loads((tmp_path / "non_finite_step_2_process_0.json").read_text())
    trainer.train_sampler.set_epoch(0)
    expected = [ROWS[draw.index]["image_id"] for draw in trainer.train_sampler][2:4]
    # A loss is seen at its batch, a gradient when all batches of the step have been summed.
    assert record["image_ids"] == expected[: 2 if "gradient" in reason else 1]
    assert (record["step"], record["reason"]) == (2, reason)


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, save_strategy="steps", save_steps=1)
    trainer.train()
    with torch.no_grad():
        trainer.model.text_projection.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"in 1 of \d+ tensors, such as `text_projection\.weight`"):
        trainer.save_final_model()
    trainer.model.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"The model in .*checkpoint-1 has weights that are NaN or infinite"):
        make_trainer(tmp_path, processor).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path, processor):
    arguments = {"save_steps": 1, "eval_steps": 1, "eval_strategy": "steps", "save_strategy": "steps", "max_steps": 2}
    trainer = make_trainer(tmp_path, processor, load_best_model_at_end=True, **arguments)
    trainer.train()
    path = Path(trainer.state.best_model_checkpoint) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedCheckpointError, match=r"`model\.safetensors` is not what was written"):
        trainer._load_best_model()
