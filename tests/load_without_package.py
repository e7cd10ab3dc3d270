"""Loads saved folders as a machine without this package does. Run by test_remote_code.py in an isolated interpreter.

Called as `python -I -S load_without_package.py REQUEST`, where REQUEST is JSON: `path` (what to import from),
`transformers` (the version expected there), `folders` (or ids on a hub), `image`, `expressions`, `thresholds` (of
each folder), `output` (a safetensors file) and, for a hub, `revision`.
`-I` leaves out the working directory and PYTHONPATH, `-S` the site packages, and with them every editable install.
"""

import importlib.util
import json
import sys


request = json.loads(sys.argv[1])
sys.path += request["path"]
for package in ("modeling_jmceln", "processing", "tests", "scripts"):
    if importlib.util.find_spec(package) is not None:
        sys.exit(f"{package} can be imported: this process is not without the package.")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline  # noqa: E402
from transformers.image_utils import load_image  # noqa: E402


if transformers.__version__ != request["transformers"]:
    sys.exit(f"transformers {transformers.__version__} was imported instead of {request['transformers']}.")

options = {"trust_remote_code": True, **({"revision": request["revision"]} if "revision" in request else {})}
tensors = {}
for name, folder in request["folders"].items():
    config = AutoConfig.from_pretrained(folder, **options)
    model = AutoModel.from_pretrained(folder, **options).eval()
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        sys.exit(f"The weights of {folder} are {dtypes} in memory, but its config.json says float32.")
    processor = AutoProcessor.from_pretrained(folder, **options)
    image_processor = AutoImageProcessor.from_pretrained(folder, **options)
    if type(model.config).__name__ != type(config).__name__ or config.model_type != "jmceln":
        sys.exit(f"AutoConfig gave {type(config)}, AutoModel one with {type(model.config)}.")

    image = load_image(request["image"])
    inputs = processor(images=image, text=request["expressions"], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    tensors[f"{name}.pixel_values"] = image_processor(images=image, return_tensors="pt")["pixel_values"]
    tensors[f"{name}.input_ids"] = inputs["input_ids"]
    tensors[f"{name}.logits"] = outputs.logits
    tensors[f"{name}.presence_logits"] = outputs.presence_logits
    (result,) = processor.post_process_referring_segmentation(
        outputs, target_sizes=inputs["original_sizes"], **request["thresholds"][name]
    )
    masks = result["masks"]
    tensors[f"{name}.masks"] = masks.to(torch.uint8)
    tensors[f"{name}.scores"] = result["scores"]

    pipe = pipeline("referring-image-segmentation", model=folder, **options)
    found = pipe(request["image"], request["expressions"], **request["thresholds"][name])
    if [one["label"] for one in found] != request["expressions"]:
        sys.exit(f"The pipeline found {found}.")
    tensors[f"{name}.pipeline_scores"] = torch.tensor([one["score"] for one in found])
    tensors[f"{name}.pipeline_masks"] = torch.stack(
        [torch.frombuffer(bytearray(one["mask"].tobytes()), dtype=torch.uint8) for one in found]
    ).reshape(masks.shape)

save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, request["output"])
