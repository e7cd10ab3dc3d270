"""Analyze the stages of a trained model on the synthetic benchmark, and which conditions it has not learned.

    python benchmarks/stage_report.py --model runs/shapes
    python benchmarks/stage_report.py --model checkpoints/jmceln-shapes --document    # into docs/results.md

The tables are those of the ablation, for a single model: scores of each stage, changes from the first stage to the
last, the landmarks, and the attention of the context tokens; then the accuracy for expressions with a single
condition; and the baselines that ignore some words and make the same errors.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from tqdm.auto import tqdm

from benchmarks.ablation_report import attention_table, landmarks_table, stages_table, transitions_table
from benchmarks.reading_errors import reading_errors_table
from benchmarks.stage_analysis import ExpressionRecord, analyze, summarize
from modeling_jmceln import JMCELNModel
from processing import JMCELNProcessor
from processing.evaluation.report import fill_page, markdown_table
from processing.shapes.expressions import Expression
from processing.shapes.oracles import labeled_scene
from processing.shapes.queries import Query, Relation, SameAs, SizeThan


MARKERS = ("<!-- stages: begin -->", "<!-- stages: end -->")
PAGE = Path("docs/results.md")


def condition_of(query: Query) -> str | None:
    """Returns the name of the only condition of an expression, or `None` if it has none or several."""
    conditions = [*query.conditions, *([query.pick] if query.pick else [])]
    if len(conditions) != 1 or query.also:
        return None
    condition = conditions[0]
    if isinstance(condition, Relation):
        return condition.direction
    if isinstance(condition, SameAs):
        return f"same {condition.attribute} as"
    if isinstance(condition, SizeThan):
        return "bigger or smaller than"
    return query.pick.order if query.pick else None


def conditions_table(expressions: Sequence[Expression], records: Sequence[ExpressionRecord]) -> str:
    """Formats, for each condition, the number of expressions and how often the last stage selects the right object."""
    chosen: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for expression, record in zip(expressions, records, strict=True):
        condition = condition_of(expression.query)
        if condition is not None and "chosen" in record:
            chosen[expression.level, condition].append(record["chosen"][-1])
    rows = [["level", "condition", "expressions", "means the right object"]]
    for (level, condition), right in sorted(chosen.items()):
        rows.append([level, condition, str(len(right)), f"{100 * sum(right) / len(right):.1f}"])
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--scenes", type=int, default=300, help="scenes of the split test (default: %(default)s)")
    parser.add_argument("--document", action="store_true", help="also write the tables to docs/results.md")
    settings = parser.parse_args(arguments)
    model = JMCELNModel.from_pretrained(settings.model).eval()
    processor = JMCELNProcessor.from_pretrained(settings.model)
    image_size = processor.image_processor.size["height"]
    scenes = [
        labeled_scene("test", index, image_size=image_size)
        for index in tqdm(range(settings.scenes), desc="test scenes", unit="scene", leave=False)
    ]
    records = analyze(model, processor, scenes, controls=())
    report = {"variants": ["model"], "runs": [{"variant": "model", "seed": 0, "summary": summarize(records)}]}
    expressions = [expression for scene in scenes for expression in scene.expressions]
    introduction = (
        f"{settings.scenes} scenes of the split `test` at {image_size}², {len(expressions)} expressions;"
        " figures are points of a hundred, attention is a density (1 is an even look)."
    )
    tables = [stages_table(report), transitions_table(report), landmarks_table(report), attention_table(report)]
    errors = (
        "### What its errors show\n\nWrong answers on relations and chains: their number, the percentage that matches"
        " the head phrase, and the percentage that a baseline that ignores some words could also give (in parentheses,"
        " the percentage by chance: of all wrong objects that match the head phrase).\n\n"
        + reading_errors_table(scenes, records)
    )
    text = "\n\n".join([introduction, *tables, conditions_table(expressions, records), errors])
    print(text)
    if settings.document:
        fill_page(PAGE, *MARKERS, f"\n\n{text}\n\n")
    return text


if __name__ == "__main__":
    main()
