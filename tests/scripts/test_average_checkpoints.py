import pytest
import torch
from safetensors.torch import save_file

from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.training.weight_average import WeightAverage
from scripts.average_checkpoints import average_weights, main
from tests.tiny import tiny_config, tiny_processor


@pytest.fixture
def folders(tmp_path):
    """Two models with other weights, and their processors."""
    processor = tiny_processor()
    config = tiny_config()
    config.text_config.vocab_size = len(processor.tokenizer)
    made = []
    for name in ("first", "second"):
        JMCELNModel(config).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        made.append(tmp_path / name)
    return made


def test_the_average_lies_in_the_middle(folders, tmp_path):
    main([str(tmp_path / "averaged"), *map(str, folders)])
    averaged = JMCELNModel.from_pretrained(tmp_path / "averaged").state_dict()
    first, second = (JMCELNModel.from_pretrained(folder).state_dict() for folder in folders)
    assert averaged.keys() == first.keys()
    for name, value in averaged.items():
        expected = (first[name] + second[name]) / 2 if value.is_floating_point() else first[name]
        torch.testing.assert_close(value, expected, msg=name)
    JMCELNProcessor.from_pretrained(tmp_path / "averaged")


def test_the_running_average_of_a_training_is_taken(folders, tmp_path):
    name = "presence_head.output.bias"
    save_file({name: torch.tensor([5.0])}, folders[1] / WeightAverage.file_name)
    main([str(tmp_path / "averaged"), *map(str, folders)])
    own = JMCELNModel.from_pretrained(folders[0]).state_dict()[name]
    averaged = JMCELNModel.from_pretrained(tmp_path / "averaged").state_dict()[name]
    torch.testing.assert_close(averaged, (own + 5.0) / 2)


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="Model 2 has other weights than the first, for example `weight`"):
        average_weights([{"weight": torch.zeros(2)}, {"weight": torch.zeros(3)}])
