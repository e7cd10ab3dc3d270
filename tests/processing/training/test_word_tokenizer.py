import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from processing.shapes.dataset import shapes_sample
from processing.shapes.wording import shapes_vocabulary
from processing.training.word_tokenizer import SPECIAL_TOKENS, build_word_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer(shapes_vocabulary())


def test_special_tokens_come_first(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert tokenizer.pad_token_id == 0
    assert len(tokenizer) == 5 + len(shapes_vocabulary())


def test_words_are_whole_or_unknown(tokenizer):
    encoded = tokenizer("The red STAR, starry!")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens == ["[CLS]", "the", "red", "star", "[UNK]", "[UNK]", "[UNK]", "[SEP]"]
    assert set(encoded) == {"input_ids", "attention_mask"}


def test_every_expression_of_the_benchmark_is_known_and_fits(tokenizer):
    for index in range(20):
        for expression in shapes_sample("train", index)[1]:
            ids = tokenizer(expression.text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(expression.text.split()) + 2 <= tokenizer.model_max_length
            assert tokenizer.decode(ids, skip_special_tokens=True) == expression.text


def test_it_loads_as_it_was_saved(tokenizer, tmp_path):
    texts = ["the small red star", "an unknown zebra", ""]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(texts, padding=True) == tokenizer(texts, padding=True)
    assert loaded.model_max_length == tokenizer.model_max_length == 64
    # The class must be one that every supported version knows by this name.
    assert '"tokenizer_class": "BertTokenizer"' in (tmp_path / "tokenizer_config.json").read_text()


@settings(max_examples=20)
@given(words=st.permutations(["red", "star", "left", "of", "the", "blue-ish"]))
def test_the_order_of_the_texts_does_not_matter(words):
    assert build_word_tokenizer(words).get_vocab() == build_word_tokenizer([" ".join(sorted(words))]).get_vocab()


def test_padding_and_truncation(tokenizer):
    short = build_word_tokenizer(["red star left of"], max_length=4)
    encoded = short(["red star left of red", "red"], padding=True, truncation=True)
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 4]
    assert encoded["attention_mask"] == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_impossible_arguments():
    with pytest.raises(TypeError, match="put it in a list"):
        build_word_tokenizer("red star")
    with pytest.raises(ValueError, match="no word"):
        build_word_tokenizer(["", "  "])
    with pytest.raises(ValueError, match="got 2"):
        build_word_tokenizer(["red"], max_length=2)
