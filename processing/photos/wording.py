"""What is known of object categories: English names, singular and plural, and which are easily confused."""

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
ORDINAL_WORDS = ("", "first", "second", "third", "fourth", "fifth")

# Names that are irregular, have a usual synonym, or are written otherwise in COCO than people say. The first is the
# usual one.
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "person": (("person", "people"),),
    "bicycle": (("bicycle", "bicycles"), ("bike", "bikes")),
    "motorcycle": (("motorcycle", "motorcycles"), ("motorbike", "motorbikes")),
    "airplane": (("airplane", "airplanes"), ("plane", "planes")),
    "sheep": (("sheep", "sheep"),),
    "skis": (("pair of skis", "pairs of skis"),),
    "sports ball": (("ball", "balls"),),
    "baseball bat": (("baseball bat", "baseball bats"), ("bat", "bats")),
    "baseball glove": (("baseball glove", "baseball gloves"),),
    "knife": (("knife", "knives"),),
    "broccoli": (("piece of broccoli", "pieces of broccoli"),),
    "donut": (("donut", "donuts"), ("doughnut", "doughnuts")),
    "couch": (("couch", "couches"), ("sofa", "sofas")),
    "potted plant": (("plant", "plants"), ("potted plant", "potted plants")),
    "dining table": (("table", "tables"), ("dining table", "dining tables")),
    "tv": (("tv", "tvs"), ("television", "televisions")),
    "mouse": (("computer mouse", "computer mice"),),
    "remote": (("remote control", "remote controls"), ("remote", "remotes")),
    "cell phone": (("phone", "phones"), ("cell phone", "cell phones")),
    "refrigerator": (("fridge", "fridges"), ("refrigerator", "refrigerators")),
    "scissors": (("pair of scissors", "pairs of scissors"),),
    "hair drier": (("hair dryer", "hair dryers"),),
}

# Categories that one person calls so and another otherwise: none of a group is called absent where another is there.
_CONFUSABLE: tuple[frozenset[str], ...] = tuple(
    frozenset(group)
    for group in (
        ("car", "truck", "bus", "train"),
        ("bicycle", "motorcycle"),
        ("couch", "chair", "bed", "bench"),
        ("cup", "wine glass", "bottle", "bowl", "vase"),
        ("backpack", "handbag", "suitcase"),
        ("fork", "knife", "spoon", "scissors", "toothbrush"),
        ("tv", "laptop"),
        ("sheep", "cow", "horse"),
        ("cat", "dog", "bear", "teddy bear"),
        ("bird", "kite", "airplane"),
        ("oven", "microwave", "toaster", "refrigerator", "sink"),
        ("sports ball", "orange", "apple", "frisbee"),
        ("cake", "donut", "sandwich", "pizza", "hot dog"),
        ("banana", "carrot", "hot dog"),
        ("broccoli", "potted plant"),
        ("potted plant", "vase"),
        ("skis", "snowboard", "surfboard", "skateboard"),
        ("remote", "cell phone", "mouse", "keyboard"),
        ("keyboard", "laptop"),
        ("book", "laptop"),
        ("dining table", "bench", "bed"),
        ("boat", "surfboard"),
        ("traffic light", "stop sign", "parking meter", "fire hydrant"),
        ("baseball bat", "tennis racket"),
        ("tie", "umbrella"),
    )
)

# What stands on the ground or is built in looks cut out wherever else it is pasted, and is seldom visible as a whole.
FIXTURES = frozenset(
    ("dining table", "bed", "couch", "sink", "oven", "refrigerator", "microwave", "toilet", "bench", "train")
)


def category_names(category: str) -> tuple[tuple[str, str], ...]:
    """Ways to call a category, each as (singular, plural), the usual one first."""
    category = category.strip().lower().replace("_", " ")
    return _NAMES.get(category, ((category, pluralize(category)),))


def pluralize(noun: str) -> str:
    """Regular English plural of the last word of a noun."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def confusable(first: str, second: str) -> bool:
    """Whether an object of one category may well be called by the name of the other."""
    return first == second or any(first in group and second in group for group in _CONFUSABLE)
