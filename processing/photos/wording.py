"""Properties of object categories: English names, singular and plural, and categories that are easily confused."""

from collections.abc import Collection


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
ORDINAL_WORDS = ("", "first", "second", "third", "fourth", "fifth")
ORDINAL_NUMERALS = ("", "1st", "2nd", "3rd", "4th", "5th")

# Names with an irregular plural, with common synonyms, or with another name in COCO. The first is the most common one.
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "person": (("person", "people"),),
    "bicycle": (("bicycle", "bicycles"), ("bike", "bikes"), ("cycle", "cycles")),
    "motorcycle": (("motorcycle", "motorcycles"), ("motorbike", "motorbikes")),
    "airplane": (("airplane", "airplanes"), ("plane", "planes"), ("aeroplane", "aeroplanes")),
    "traffic light": (("traffic light", "traffic lights"), ("stoplight", "stoplights")),
    "fire hydrant": (("fire hydrant", "fire hydrants"), ("hydrant", "hydrants")),
    "parking meter": (("parking meter", "parking meters"), ("meter", "meters")),
    "sheep": (("sheep", "sheep"),),
    "backpack": (("backpack", "backpacks"), ("rucksack", "rucksacks")),
    "handbag": (("handbag", "handbags"), ("purse", "purses")),
    "tie": (("tie", "ties"), ("necktie", "neckties")),
    "suitcase": (("suitcase", "suitcases"), ("piece of luggage", "pieces of luggage")),
    "frisbee": (("frisbee", "frisbees"), ("disc", "discs")),
    "skis": (("pair of skis", "pairs of skis"),),
    "sports ball": (("ball", "balls"),),
    "baseball bat": (("baseball bat", "baseball bats"), ("bat", "bats")),
    "baseball glove": (("baseball glove", "baseball gloves"), ("glove", "gloves"), ("mitt", "mitts")),
    "tennis racket": (("tennis racket", "tennis rackets"), ("racket", "rackets"), ("racquet", "racquets")),
    "wine glass": (("wine glass", "wine glasses"), ("glass", "glasses")),
    "knife": (("knife", "knives"),),
    "broccoli": (("piece of broccoli", "pieces of broccoli"),),
    "hot dog": (("hot dog", "hot dogs"), ("hotdog", "hotdogs")),
    "donut": (("donut", "donuts"), ("doughnut", "doughnuts")),
    "couch": (("couch", "couches"), ("sofa", "sofas")),
    "potted plant": (("plant", "plants"), ("potted plant", "potted plants"), ("houseplant", "houseplants")),
    "dining table": (("table", "tables"), ("dining table", "dining tables")),
    "tv": (
        ("tv", "tvs"),
        ("television", "televisions"),
        ("tv screen", "tv screens"),
        ("monitor", "monitors"),
        ("screen", "screens"),
    ),
    "laptop": (("laptop", "laptops"), ("laptop computer", "laptop computers"), ("notebook", "notebooks")),
    "mouse": (("computer mouse", "computer mice"), ("mouse", "mice")),
    "remote": (("remote control", "remote controls"), ("remote", "remotes")),
    "cell phone": (("phone", "phones"), ("cell phone", "cell phones"), ("cellphone", "cellphones")),
    "oven": (("oven", "ovens"), ("stove", "stoves")),
    "refrigerator": (("fridge", "fridges"), ("refrigerator", "refrigerators")),
    "teddy bear": (("teddy bear", "teddy bears"), ("teddy", "teddies"), ("stuffed bear", "stuffed bears")),
    "scissors": (("pair of scissors", "pairs of scissors"),),
    "hair drier": (("hair dryer", "hair dryers"), ("blow dryer", "blow dryers")),
}

# Names that also match other categories. They are not used if one of these is in the photo.
_NAMES_SHARED_WITH: dict[str, frozenset[str]] = {
    name: frozenset(categories)
    for names, categories in (
        (("bike", "bikes", "cycle", "cycles"), ("motorcycle",)),
        (("glass", "glasses"), ("cup",)),
        (("screen", "screens", "monitor", "monitors"), ("laptop", "cell phone")),
        (("notebook", "notebooks"), ("book",)),
        (("disc", "discs"), ("frisbee", "sports ball")),
        (("purse", "purses"), ("backpack", "suitcase")),
        (("mouse", "mice"), ("cat",)),
        (("ball", "balls"), ("orange", "apple")),
        (("meter", "meters"), ("clock",)),
    )
    for name in names
}

# Categories that people confuse: no category of a group is called absent if another one of the group is present.
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

# Categories that are not pasted: they stand on the ground or are built in, and are rarely visible as a whole.
FIXTURES = frozenset(
    ("dining table", "bed", "couch", "sink", "oven", "refrigerator", "microwave", "toilet", "bench", "train")
)

ANIMALS = frozenset(("cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"))

# Categories that stand on the ground, so that their lower edge shows how near they are.
GROUNDED = ANIMALS | frozenset(
    (
        *("person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "boat", "bench", "chair", "couch"),
        *("suitcase", "fire hydrant", "parking meter"),
    )
)

# Things that people carry or wear, which can distinguish people.
CARRIED = frozenset(
    (
        *("umbrella", "backpack", "handbag", "suitcase", "tie", "skis", "snowboard", "surfboard", "skateboard"),
        *("baseball bat", "baseball glove", "tennis racket", "cell phone", "frisbee", "kite", "teddy bear"),
    )
)

_TABLEWARE = frozenset(
    (
        *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
        *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "laptop", "mouse", "keyboard", "cell phone"),
        *("book", "vase", "scissors", "remote"),
    )
)
_ON_FURNITURE = frozenset(("person", "cat", "dog", "teddy bear", "book", "laptop", "remote", "backpack", "handbag"))

# For each category, the categories that can be on it.
SUPPORTS: dict[str, frozenset[str]] = {
    "dining table": _TABLEWARE,
    "couch": _ON_FURNITURE,
    "bed": _ON_FURNITURE,
    "chair": _ON_FURNITURE,
    "bench": _ON_FURNITURE,
    **dict.fromkeys(("horse", "elephant", "motorcycle", "bicycle"), frozenset(("person",))),
    **dict.fromkeys(("skateboard", "surfboard", "snowboard"), frozenset(("person",))),
}

# Categories that people can be inside of, so that neither is in front of the other.
ENTERED = frozenset(("car", "bus", "train", "truck", "boat"))

# Categories whose objects people distinguish by color: not food, screens, or things that hardly differ in color.
COLORED = (ANIMALS - {"zebra", "giraffe", "elephant"}) | frozenset(
    (
        *("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "bench", "bird", "backpack"),
        *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
        *("skateboard", "surfboard", "bottle", "cup", "bowl", "chair", "couch", "toilet", "laptop", "mouse"),
        *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
        *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "fire hydrant", "apple", "donut"),
    )
)


def category_names(category: str, present: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """
    Returns the names of a category, each as (singular, plural), the most common one first.

    Names that also match another category that is `present` are left out.
    """
    category = category.strip().lower().replace("_", " ")
    names = _NAMES.get(category, ((category, pluralize(category)),))
    clear = tuple(
        name for name in names if not (_NAMES_SHARED_WITH.get(name[0], frozenset()) - {category}).intersection(present)
    )
    return clear or names[:1]


def pluralize(noun: str) -> str:
    """Returns the regular English plural of a noun."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def with_article(noun: str) -> str:
    """Returns a noun with "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def confusable(first: str, second: str) -> bool:
    """Whether people may call an object of one category by the name of the other."""
    return first == second or any(first in group and second in group for group in _CONFUSABLE)
