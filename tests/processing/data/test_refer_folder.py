import contextlib
import json
import logging
import os
import pickle
import pickletools
import re
import resource
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.data.canonical_rows import BadRowError
from processing.data.masks import decode_mask, mask_area
from processing.data.refer_folder import is_refer_folder, reference_files
from processing.data.referring_datasets import load_referring_dataset
from processing.data.restricted_pickle import UnsafePickleError, load_plain_pickle
from tests.processing.refer_fixtures import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "coco")


def loaded_masks(rows):
    return {
        (row["image_id"], expression): decode_mask(row["masks"][index])
        for row in rows
        for expression, index in zip(row["expressions"], row["mask_index"], strict=True)
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "val", "testA"])
def test_published_form(world, split, streaming):
    folder = world.write_refer_folder()
    rows = load_referring_dataset(
        folder, split, image_folder=world.folder, streaming=streaming, on_bad_row="raise", check_images=True
    )
    rows = list(rows)
    images = {reference["image_id"] for reference in world.references() if reference["split"] == split}
    expected = {
        (image_id, expression): mask
        for image_id, sentences in world.expected().items()
        for expression, mask in sentences.items()
        if int(image_id) in images
    }
    actual = loaded_masks(rows)
    assert set(actual) == set(expected)
    for key, mask in expected.items():
        np.testing.assert_array_equal(actual[key], mask)
    assert {(row["dataset"], row["split"]) for row in rows} == {("refcoco_unc", split)}
    assert "levels" not in rows[0]
    assert sum(len(row["ref_ids"]) for row in rows) == len(expected) // 2


def test_the_union_keeps_what_the_sum_of_the_published_reader_loses(world):
    folder = world.write_refer_folder()
    (row,) = load_referring_dataset(folder, "val", image_folder=world.folder)
    union = decode_mask(row["masks"][1])
    first, second = np.zeros_like(union), np.zeros_like(union)
    first[15:25, 10:20] = second[20:30, 15:30] = True
    as_summed = (first.astype(int) + second) == 1
    assert union.sum() == 10 * 10 + 10 * 15 - 5 * 5
    assert as_summed.sum() == union.sum() - 5 * 5


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(tmp_path, protocol):
    data = [{"a": [1, -2, 3.5, 10**20], "b": ("x", None, True), "s": "\u00e9t\u00e9"}]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    assert load_plain_pickle(path) == data


def python_2_pickle(value) -> bytes:
    """Protocol 2 as Python 2 writes it: its `str` are byte strings (SHORT_BINSTRING), as Python 3 makes no more."""
    opcodes = {opcode.name: opcode.code.encode("latin1") for opcode in pickletools.opcodes}

    def write(item) -> bytes:
        if isinstance(item, bool) or item is None:
            raise TypeError(item)
        if isinstance(item, str):
            raw = item.encode("latin1")
            return opcodes["SHORT_BINSTRING"] + bytes([len(raw)]) + raw
        if isinstance(item, int):
            return opcodes["BININT"] + item.to_bytes(4, "little", signed=True)
        if isinstance(item, list):
            body = b"".join(write(part) for part in item)
            return opcodes["EMPTY_LIST"] + opcodes["MARK"] + body + opcodes["APPENDS"]
        body = b"".join(write(part) for pair in item.items() for part in pair)
        return opcodes["EMPTY_DICT"] + opcodes["MARK"] + body + opcodes["SETITEMS"]

    return b"\x80\x02" + write(value) + opcodes["STOP"]


def test_pickle_of_python_2_as_published(world):
    folder = world.write_refer_folder()
    references = world.references()
    references[0]["sentences"][0]["sent"] = "the caf\u00e9"
    path = folder / "refs(unc).p"
    path.write_bytes(python_2_pickle(references))
    assert b"U" in path.read_bytes()[:20]  # SHORT_BINSTRING
    rows = load_referring_dataset(folder, "train", image_folder=world.folder)
    assert rows[0]["expressions"][:2] == ["the caf\u00e9", "thing 1719310 here"]


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_does_not_run(world, protocol):
    folder = world.write_refer_folder()
    marker = folder / "was-here"
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Hostile(marker)], protocol=protocol))
    with pytest.raises(UnsafePickleError, match=r"refs\(unc\)\.p: refused: this pickle imports `.*mkdir`"):
        load_referring_dataset(folder, "train", image_folder=world.folder)
    assert not marker.exists()
    pickle.loads((folder / "refs(unc).p").read_bytes())  # the same bytes do run where nothing holds them back
    assert marker.is_dir()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"(S'true'\nios\nsystem\n.",
        pickle.dumps(np.float64(1.0)),
        pickle.dumps(Counter("a")),
    ],
)
def test_nothing_is_imported(tmp_path, payload):
    path = tmp_path / "refs.p"
    path.write_bytes(payload)
    with pytest.raises(UnsafePickleError, match="refused"):
        load_plain_pickle(path)


def test_persistent_ids_and_damage(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(b"Psomewhere\n.")
    with pytest.raises(UnsafePickleError, match="external object 'somewhere'"):
        load_plain_pickle(path)
    for damaged in (b"", b"garbage", pickle.dumps([1, 2, 3])[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable pickle"):
            load_plain_pickle(path)


def nested_key(depth: int) -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple: hashing it recurses in C without a check."""
    return b"\x80\x02}" + b"K\x01" + b"\x85" * depth + b"K\x01s."


@pytest.mark.parametrize(
    "payload",
    [
        nested_key(2_000_000),
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # asks for a memo of 2^31 entries
        b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",  # a string that claims to have 2^40 bytes
        b"(lp0\n" + b"(I1\nI2\n" * 3 + b"i.",
    ],
)
def test_a_pickle_that_crashes_or_wants_too_much_is_refused(tmp_path, payload):
    path = tmp_path / "refs.p"
    path.write_bytes(payload)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="not a readable pickle"):
        load_plain_pickle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@settings(max_examples=25)
@given(st.data())
def test_a_damaged_pickle_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("pickle") / "refs.p"
    reference = {"ref_id": 1, "sentences": [{"sent": "a cat"}], "ann_id": (1, 2)}
    content = bytearray(pickle.dumps([reference] * 2, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):  # any other error, and a crash, fails
        load_plain_pickle(path)


def write_generalized(world):
    """gRefCOCO: lists of annotations, several and none."""
    folder = world.write_refer_folder()
    (folder / "refs(unc).p").unlink()
    image = world.images[1]
    own = [annotation["id"] for annotation in world.annotations if annotation["image_id"] == image["id"]]
    targets = {0: own[:2], 1: [-1], 2: own[2:]}
    references = [
        {
            "ref_id": ref_id,
            "ann_id": ids,
            "category_id": [-1] if ids == [-1] else [1] * len(ids),
            "no_target": ids == [-1],
            "image_id": image["id"],
            "file_name": image["file_name"],
            "split": "val",
            "sent_ids": [ref_id],
            "sentences": [{"tokens": [], "raw": f"Text {ref_id}", "sent": f"text {ref_id}", "sent_id": ref_id}],
        }
        for ref_id, ids in targets.items()
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(references), "utf-8")
    return folder, own


@pytest.mark.parametrize("streaming", [False, True])
def test_generalized_references(world, streaming):
    folder, own = write_generalized(world)
    (row,) = load_referring_dataset(
        folder, "val", image_folder=world.folder, streaming=streaming, on_bad_row="raise", dataset_name="grefcoco"
    )
    assert row["dataset"] == "grefcoco"
    assert row["expressions"] == ["text 0", "text 1", "text 2"]
    assert row["ref_ids"] == ["0", "1", "2"]
    np.testing.assert_array_equal(decode_mask(row["masks"][0]), world.masks[own[0]] | world.masks[own[1]])
    assert mask_area(row["masks"][1]) == 0
    assert decode_mask(row["masks"][1]).shape == world.masks[own[0]].shape
    np.testing.assert_array_equal(decode_mask(row["masks"][2]), world.masks[own[2]])  # run lengths of a crowd


def test_which_references(world, tmp_path):
    folder = world.write_refer_folder()
    assert is_refer_folder(folder)
    assert not is_refer_folder(tmp_path)
    world.write_refer_folder(name="refs(google).p")
    assert set(reference_files(folder)) == {"unc", "google"}
    options = {"image_folder": world.folder}
    with pytest.raises(ValueError, match=r"\['google', 'unc'\]: choose one with `split_by`"):
        load_referring_dataset(folder, "train", **options)
    assert load_referring_dataset(folder, "train", split_by="google", **options)[0]["dataset"] == "refcoco_google"
    with pytest.raises(ValueError, match=r"\['partition', 'revision'\] have no effect"):
        load_referring_dataset(folder, "train", split_by="unc", partition="unc", revision="main", **options)
    with pytest.raises(ValueError, match="no references split by 'umd'"):
        load_referring_dataset(folder, "train", split_by="umd", **options)
    with pytest.raises(ValueError, match=r"has no split 'test': choose one of \['testA', 'train', 'val'\]"):
        load_referring_dataset(folder, "test", split_by="unc", **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_references_are_named(world, caplog, streaming):
    folder = world.write_refer_folder()
    instances = json.loads((folder / "instances.json").read_text())
    instances["annotations"] = instances["annotations"][1:]
    instances["annotations"][0]["segmentation"] = []
    (folder / "instances.json").write_text(json.dumps(instances), "utf-8")
    (world.folder / "train2014" / world.images[1]["file_name"]).unlink()
    options = {"image_folder": world.folder, "streaming": streaming}
    with caplog.at_level(logging.WARNING):
        if streaming:
            stream = load_referring_dataset(folder, "train", **options)
            assert list(stream) == list(stream) == []
        else:
            with pytest.raises(ValueError, match="no row is left"):
                load_referring_dataset(folder, "train", **options)
    for reason in (
        "refcoco_unc train, row 0: image 581857: referent 0: reference 0: annotation 1719310 is not in instances.json",
        "row 0: image 581857: referent 1: reference 1: annotation 1719311: an empty list is not a mask",
        "row 1: image 581858: image 'COCO_train2014_000000581858.jpg' not found",
        "3 bad rows or referents skipped so far",
    ):
        assert reason in caplog.text
    assert caplog.text.count("Bad row skipped") == 3
    with pytest.raises(BadRowError, match="row 0: image 581857: referent 0"):
        list(load_referring_dataset(folder, "train", on_bad_row="raise", **options))


HOSTILE = [
    None,
    True,
    -1,
    7,
    2**70,
    "x",
    "",
    [],
    [None],
    {},
    {"sent": 5},
    [{"sent": 5}],
    [{"sent": None, "raw": None}],
    float("nan"),
    float("inf"),
]


def write_json_folder(world, references, instances):
    folder = world.folder / "refcoco"
    folder.mkdir(exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(instances), "utf-8")
    (folder / "refs(unc).json").write_text(json.dumps(references), "utf-8")
    return folder


def instances_of(world):
    return json.loads(json.dumps({"images": world.images, "annotations": world.annotations}))


@pytest.mark.parametrize("field", ["ref_id", "split", "ann_id", "image_id", "sentences"])
def test_a_broken_field_of_one_reference_does_not_lose_the_load(world, field, caplog):
    whole = loaded_masks(load_referring_dataset(world.write_refer_folder(), "train", image_folder=world.folder))
    (world.folder / "refcoco" / "refs(unc).p").unlink()
    lost = {("581857", "the thing 1719310"), ("581857", "thing 1719310 here")}
    options = {"image_folder": world.folder}
    for value in ["missing", *HOSTILE]:
        references = world.references()
        references[0][field] = value
        if value == "missing":
            del references[0][field]
        folder = write_json_folder(world, references, instances_of(world))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            kept = loaded_masks(load_referring_dataset(folder, "train", **options))
        assert lost - set(kept) in (set(), lost), value
        assert {key for key in whole if key not in lost} <= set(kept), value
        # A string is another split, any scalar may be an id of a reference, and no annotation is no target.
        may_be_meant = field == "ref_id" or (field, value) in (("split", "x"), ("split", "")) or field == "ann_id"
        if not may_be_meant or value == "missing":
            assert "Bad row skipped: refcoco_unc train, " in caplog.text, value
            with pytest.raises(BadRowError):
                load_referring_dataset(folder, "train", on_bad_row="raise", **options)


@pytest.mark.parametrize("field", ["height", "width", "file_name", "id"])
def test_a_broken_field_of_one_image_does_not_lose_the_load(world, field, caplog):
    references = world.references()
    for value in ["missing", *HOSTILE, -40, 1.5, 10**9, "../../../etc/passwd"]:
        instances = instances_of(world)
        instances["images"][0][field] = value
        if value == "missing":
            del instances["images"][0][field]
        folder = write_json_folder(world, references, instances)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            kept = load_referring_dataset(folder, "train", image_folder=world.folder)
        assert "581858" in kept["image_id"][:], value
        # The photo of an id is found also under the usual names of COCO, whatever `file_name` says.
        if "581857" not in kept["image_id"][:]:
            assert "row 0: image 581857: " in caplog.text, value
            with pytest.raises(BadRowError, match="image 581857"):
                load_referring_dataset(folder, "train", image_folder=world.folder, on_bad_row="raise")


def test_ids_that_stand_twice_are_ambiguous(world, caplog):
    folder = world.write_refer_folder()
    instances = instances_of(world)
    instances["annotations"].append({**instances["annotations"][0], "segmentation": [[0, 0, 9, 0, 9, 9]]})
    instances["annotations"].append(instances["annotations"][1])  # the same once more is no contradiction
    instances["images"].append({**instances["images"][1], "height": 40})
    (folder / "instances.json").write_text(json.dumps(instances), "utf-8")
    with caplog.at_level(logging.WARNING):
        (row,) = load_referring_dataset(folder, "train", image_folder=world.folder)
    assert row["ref_ids"] == ["1"]
    assert "annotation 1719310 occurs in instances.json several times" in caplog.text
    assert "image 581858 occurs in instances.json several times" in caplog.text


def test_an_annotation_of_another_image_is_refused(world, caplog):
    folder = world.write_refer_folder()
    references = world.references()
    references[0]["ann_id"] = next(one["id"] for one in world.annotations if one["image_id"] == 581859)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references))
    with caplog.at_level(logging.WARNING):
        rows = load_referring_dataset(folder, "train", image_folder=world.folder)
    assert rows[0]["ref_ids"] == ["1"]
    assert "reference 0: annotation 1719315 belongs to the image 581859" in caplog.text


@pytest.mark.parametrize("name", ["instances.json", "refs(unc).json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "{", "", "5", '"text"', "null", "[[[]]]", "\x00"])
def test_broken_files_are_named(world, name, content):
    folder = write_json_folder(world, world.references(), instances_of(world))
    (folder / name).write_text(content, "utf-8")
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} (is not|must be a mapping)|has no split 'train': choose one of \[\]"
    ):
        load_referring_dataset(folder, "train", image_folder=world.folder)


def test_a_photo_that_is_cut_off_is_named_and_skipped(world, caplog):
    folder = world.write_refer_folder()
    path = world.folder / "train2014" / world.images[0]["file_name"]
    path.write_bytes(path.read_bytes()[:-200])
    for streaming in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            rows = load_referring_dataset(folder, "train", image_folder=world.folder, streaming=streaming)
            assert [row["image_id"] for row in rows] == ["581858"]
        assert "row 0: image 581857: image cannot be decoded" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_share_a_stream(world, num_workers):
    folder = world.write_refer_folder()
    rows = load_referring_dataset(folder, "train", image_folder=world.folder, streaming=True)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=None, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None
    )
    assert Counter(row["image_id"] for row in loader) == Counter({"581857": 1, "581858": 1})


def test_photos_of_coco(coco_mini, tmp_path):
    instances = json.loads((coco_mini / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    references = [
        {
            "ref_id": annotation["id"],
            "ann_id": annotation["id"],
            "image_id": annotation["image_id"],
            "split": "train",
            "sentences": [{"sent": f"annotation {annotation['id']}", "raw": ""}],
        }
        for annotation in instances["annotations"]
    ]
    (tmp_path / "instances.json").symlink_to(coco_mini / "instances.json")
    (tmp_path / "refs(all).json").write_text(json.dumps(references), "utf-8")
    rows = load_referring_dataset(
        tmp_path, "train", image_folder=coco_mini, on_bad_row="raise", check_images=True, dataset_name="mini"
    )
    masks = {int(ref_id): mask for row in rows for ref_id, mask in zip(row["ref_ids"], row["masks"], strict=True)}
    assert len(masks) == len(instances["annotations"])
    for annotation in instances["annotations"]:
        area = mask_area(masks[annotation["id"]])
        if annotation["iscrowd"]:
            assert area == sum(annotation["segmentation"]["counts"][1::2])
        else:
            assert abs(area - annotation["area"]) < 30 + 0.1 * annotation["area"], annotation["id"]
    for row in rows:
        assert sizes[int(row["image_id"])] == row["image"].size[::-1]
