"""What single parts promise: alignment, contextual embedding, upsampling, losses, presence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modeling_jmceln import JMCELNModel
from modeling_jmceln.alignment import JMCELNProgressiveAlignment
from modeling_jmceln.attention import (
    JMCELNAttention,
    axial_angles,
    cell_centers,
    matched_reading,
    pool_maps,
    sine_position_embedding,
)
from modeling_jmceln.cascade import JMCELNMaskPredictor
from modeling_jmceln.contextual_embedding import JMCELNContextComparison, JMCELNContextReader
from modeling_jmceln.fusion import JMCELNFusionLayer
from modeling_jmceln.losses import cover_cells, dice_loss, expression_losses, landmark_loss, mask_loss
from modeling_jmceln.upsampling import JMCELNConvexUpsampler
from tests.modeling_jmceln.inputs import random_inputs, random_labels, random_model
from tests.tiny import tiny_config


@pytest.mark.parametrize("sizes", [[(4, 4), (2, 2)], [(9, 6), (4, 3)], [(5, 13)], [(1, 7)]])
def test_keys_are_averages_over_at_most_so_many_cells(sizes):
    limit = 4
    tokens = torch.randn(2, sum(height * width for height, width in sizes), 3, dtype=torch.float64)
    expected, start = [], 0
    for height, width in sizes:
        grid = tokens[:, start : start + height * width].view(2, height, width, 3)
        start += height * width
        step = -(-max(height, width) // limit)
        expected += [
            grid[:, row : row + step, column : column + step].mean((1, 2))
            for row in range(0, height, step)
            for column in range(0, width, step)
        ]
    pooled = pool_maps(tokens, sizes, limit)
    torch.testing.assert_close(pooled, torch.stack(expected, dim=1))
    assert pooled.shape[1] <= limit**2 * len(sizes)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("num_sources", [1, 7, 16, 17])
def test_reading_does_not_depend_on_the_keys_that_fill_whole_vectors(num_sources, implementation):
    config = tiny_config(attn_implementation=implementation)
    attention, gate = JMCELNAttention(config), nn.Linear(config.hidden_size, config.hidden_size)
    queries, sources = torch.randn(2, 5, config.hidden_size), torch.randn(2, num_sources, config.hidden_size)
    bias = torch.zeros(2, 1, 1, num_sources)
    bias[1, ..., num_sources // 2 + 1 :] = torch.finfo(bias.dtype).min
    expected = attention(queries, sources, sources, bias)[0] * gate(queries)
    torch.testing.assert_close(matched_reading(attention, gate, queries, sources, bias), expected)


@torch.no_grad()
def test_the_last_layer_of_the_neck_updates_the_working_map_alone():
    config = tiny_config(attn_implementation="eager")
    layer, size = JMCELNFusionLayer(config), config.hidden_size
    pixels, positions = torch.randn(2, 30, size), torch.randn(1, 30, size)
    text = torch.randn(2, 3, size), torch.zeros(2, 1, 1, 3)
    everything = layer(pixels, positions, [(4, 6), (2, 3)], *text)
    working_map = layer(pixels, positions, [(4, 6), (2, 3)], *text, num_updated=24)
    torch.testing.assert_close(working_map, everything[:, :24])


@pytest.mark.parametrize(("bias", "which"), [(1e4, "prediction"), (-1e4, "previous")])
def test_open_filter_gives_the_prediction_and_shut_filter_the_previous_mask(bias, which):
    alignment = JMCELNProgressiveAlignment(tiny_config())
    nn.init.zeros_(alignment.filter.weight)
    nn.init.constant_(alignment.filter.bias, bias)
    masks = {"prediction": torch.randn(2, 5, 7), "previous": torch.randn(2, 5, 7)}
    aligned, alignment_filter = alignment(torch.randn(2, 5, 7, 16), **masks)
    assert torch.equal(aligned, masks[which])
    assert torch.equal(alignment_filter, torch.full_like(alignment_filter, float(bias > 0)))


@pytest.mark.parametrize(("mask_feature_size", "filter_size"), [(8, 4), (16, 4), (32, 8), (80, 20)])
def test_filter_has_a_quarter_of_the_mask_features(mask_feature_size, filter_size):
    alignment = JMCELNProgressiveAlignment(tiny_config(mask_feature_size=mask_feature_size))
    assert alignment.filter.weight.shape == (1, filter_size, 1, 1)


@torch.no_grad()
def test_stages_beyond_the_levels_of_the_pyramid_predict_at_the_coarsest():
    sizes = [tuple(stage.shape[-2:]) for stage in random_model(num_stages=5)(**random_inputs()).stage_logits]
    assert sizes == [(4, 4), (4, 4), (4, 4), (8, 8), (16, 16)]


@torch.no_grad()
def test_reader_asks_with_the_positions_of_the_pixels():
    config = tiny_config()
    config._attn_implementation = "eager"
    reader = JMCELNContextReader(config)
    reader.pixel_norm = nn.Identity()
    pixels, positions = torch.randn(2, 6, config.hidden_size), torch.randn(1, 6, config.hidden_size)
    others = torch.randn(2, 4, config.hidden_size), torch.randn(2, 3, config.hidden_size), torch.zeros(2, 1, 1, 3)
    read = reader(pixels, positions, *others) - pixels
    moved = pixels + positions
    torch.testing.assert_close(read, reader(moved, torch.zeros_like(positions), *others) - moved)


@torch.no_grad()
def test_predictor_adds_the_positions_to_the_pixels():
    config = tiny_config()
    predictor = JMCELNMaskPredictor(config, is_first=True)
    predictor.pixel_norm = nn.Identity()
    pixels, positions = torch.randn(2, 6, config.hidden_size), torch.randn(1, 6, config.hidden_size)
    others = torch.randn(2, 4, config.hidden_size), torch.randn(1, 4, 6, config.mask_feature_size), 2, 3
    expected = predictor(pixels + positions, torch.zeros_like(positions), *others)
    for found, wanted in zip(predictor(pixels, positions, *others), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_shut_filters_carry_the_first_mask_through_the_whole_model():
    model = random_model(num_stages=3)
    for stage in model.cascade.stages[1:]:
        nn.init.zeros_(stage.alignment.filter.weight)
        nn.init.constant_(stage.alignment.filter.bias, -1e4)
    first, *_, last = model(**random_inputs()).stage_logits
    expected = nn.functional.interpolate(first, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(nn.functional.interpolate(expected, scale_factor=2, mode="bilinear"), last)


@torch.no_grad()
def test_alignment_starts_open():
    filters = JMCELNModel(tiny_config(num_stages=3)).eval()(**random_inputs()).alignment_filters
    assert len(filters) == 2
    for alignment_filter in filters:
        torch.testing.assert_close(alignment_filter, torch.full_like(alignment_filter, 2.0).sigmoid())


def test_the_model_starts_where_it_should():
    model = JMCELNModel(tiny_config(num_stages=3))
    assert torch.equal(model.upsampler.weights.bias, model.upsampler.weights.initial_bias())
    for stage in model.cascade.stages:
        assert stage.predictor.bias.bias.item() == -2.0
    first, *later = (stage.predictor.comparison for stage in model.cascade.stages)
    assert first is None, "there is no mask before"
    assert not any(comparison.weights.weight.any() or comparison.weights.bias.any() for comparison in later)


def test_a_wholly_ignored_label_teaches_nothing():
    model, inputs = random_model(), random_inputs(1, 1)
    model(**inputs, labels=torch.full((1, 1, 64, 64), 255)).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_landmarks_that_are_not_known_teach_nothing():
    model, inputs = random_model(num_stages=3), random_inputs(2, 2)
    labels = torch.randint(0, 2, (2, 2, 64, 64))
    loss = model(**inputs, labels=labels).loss
    unknown = torch.full_like(labels, 255)
    torch.testing.assert_close(model(**inputs, labels=labels, landmark_masks=unknown).loss, loss)
    landmarks = unknown.clone()
    landmarks[1, 0] = labels[0, 1]
    output = model(**inputs, labels=labels, landmark_masks=landmarks)
    expected = landmark_loss(
        tuple(stage[1, :1] for stage in output.landmark_logits), landmarks[1, :1], (64, 64), model.config
    )
    torch.testing.assert_close(output.loss - loss, model.config.landmark_loss_weight * expected.sum() / 4)


def test_every_stage_learns_to_find_landmarks():
    config = tiny_config(num_stages=3)
    landmarks = torch.zeros(1, 64, 64, dtype=torch.long)
    landmarks[:, 16:32, 32:64] = 1
    exact = [torch.where(landmarks == 1, 20.0, -20.0)] * 3
    assert landmark_loss(tuple(exact), landmarks, (64, 64), config).item() < 1e-3
    one_wrong = [*exact[:2], -exact[2]]
    assert landmark_loss(tuple(one_wrong), landmarks, (64, 64), config).item() > 10


def test_plain_cascade_has_about_the_same_size():
    full = random_model().num_parameters()
    assert random_model(use_contextual_embedding=False).num_parameters() == pytest.approx(full, rel=0.01)
    assert random_model(use_alignment=False).num_parameters() == pytest.approx(full, rel=0.03)
    plain = random_model(use_contextual_embedding=False, use_alignment=False)
    assert plain.num_parameters() == pytest.approx(full, rel=0.03)
    assert plain(**random_inputs()).alignment_filters is None


@torch.no_grad()
def test_without_contextual_embedding_tokens_know_only_the_words():
    inputs = random_inputs(2, 2)
    other_image = {**inputs, "pixel_values": -inputs["pixel_values"]}
    plain = random_model(use_contextual_embedding=False)
    for one, other in zip(
        plain(**inputs).contextual_embeddings, plain(**other_image).contextual_embeddings, strict=True
    ):
        torch.testing.assert_close(one, other)
    full = random_model()
    one, other = (full(**each).contextual_embeddings[0] for each in (inputs, other_image))
    assert not torch.allclose(one, other, atol=1e-3)


@torch.no_grad()
def test_masked_heads_of_the_writer_look_where_the_mask_is():
    model = random_model()
    writer = model.cascade.stages[1].writer
    pixels, positions = torch.randn(1, 64, 32), torch.zeros(1, 64, 32)
    probabilities = torch.zeros(1, 2, 64)
    probabilities[:, 0, :8] = 1
    probabilities[:, 1, 8:16] = 1
    _, weights = writer(
        torch.randn(1, 4, 32), torch.randn(1, 3, 32), torch.zeros(1, 1, 1, 3), pixels, positions, probabilities, True
    )
    # keys: 3 words, 4 tokens, 64 pixels
    on_pixels = weights[..., 7:] / weights[..., 7:].sum(-1, keepdim=True)
    on_referent, on_landmarks = on_pixels[..., :8].sum(-1), on_pixels[..., 8:16].sum(-1)
    assert (on_referent[:, 0] > 0.95).all()
    assert (on_landmarks[:, 1] > 0.95).all()
    assert (on_referent[:, 2:] < 0.5).all()
    assert (on_landmarks[:, 2:] < 0.5).all()


@torch.no_grad()
def test_comparison_against_a_loop_over_expressions():
    torch.manual_seed(0)
    comparison = JMCELNContextComparison(tiny_config()).double()
    answers = torch.randn(6, 2, 32, dtype=torch.float64)
    features = torch.randn(2, 4, 5, 16, dtype=torch.float64)
    previous = torch.randn(6, 4, 5, 2, dtype=torch.float64)
    added = comparison(answers, features, previous)
    for expression in range(6):
        looks = comparison.projection(comparison.norm(features[expression // 3]))
        for answer in range(2):
            chosen = comparison.weights(answers[expression, answer]).view(2, 16)
            kernel = torch.zeros(16, dtype=torch.float64)
            for mask in range(2):
                cover = previous[expression, ..., mask].sigmoid()
                kernel += chosen[mask] * (cover.unsqueeze(-1) * looks).sum((0, 1)) / (cover.sum() + 1)
            torch.testing.assert_close(added[expression, answer], looks @ kernel / 4)


@torch.no_grad()
def test_comparison_in_float16_of_a_mask_with_more_cells_than_it_can_count():
    # 1024 x 1024 pixels are 65,536 cells at stride 4, and float16 ends at 65,504: their area was infinite.
    torch.manual_seed(0)
    comparison = JMCELNContextComparison(tiny_config())
    inputs = torch.randn(1, 2, 32), torch.randn(1, 256, 256, 16), torch.full((1, 256, 256, 2), 12.0)
    expected = comparison(*inputs)
    added = comparison.half()(*(each.half() for each in inputs)).float()
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(added, expected, atol=0.02 * expected.abs().max().item(), rtol=0)


@torch.no_grad()
def test_comparison_tells_who_shares_a_feature_with_the_landmark():
    torch.manual_seed(0)
    comparison = JMCELNContextComparison(tiny_config())
    nn.init.eye_(comparison.projection.weight)
    nn.init.zeros_(comparison.projection.bias)
    nn.init.zeros_(comparison.weights.weight)
    # The landmark's first feature is what the expression compares, the others do not matter.
    comparison.weights.bias.zero_()[16] = 5.0
    features = torch.randn(1, 1, 40, 16)
    features[..., 0] = torch.tensor([3.0, -3.0]).repeat(20)
    previous = torch.full((1, 1, 40, 2), -20.0)
    previous[0, 0, 4, 1] = 20.0
    added = comparison(torch.randn(1, 2, 32), features, previous)[0, 0, 0]
    assert added[0::2].min() > 0 > added[1::2].max()


@torch.no_grad()
def test_the_writer_weighs_pixels_by_direction_and_not_by_length():
    # Unnormed pixels grow from layer to layer, and their lengths drove the attention to single cells.
    writer = random_model().cascade.stages[0].writer
    context, words, bias = torch.randn(1, 4, 32), torch.randn(1, 3, 32), torch.zeros(1, 1, 1, 3)
    pixels, positions = torch.randn(1, 64, 32), torch.randn(1, 64, 32)
    _, weights = writer(context, words, bias, pixels, positions, output_attentions=True)
    _, longer = writer(context, words, bias, 100 * pixels, positions, output_attentions=True)
    torch.testing.assert_close(longer, weights, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_what_attends_to_a_pixel_learns_where_it_is():
    model = random_model()
    pixels = torch.randn(1, 16, 32)
    here, there = torch.randn(2, 1, 16, 32)
    writer, attention = model.cascade.stages[0].writer, model.cascade.stages[0].attention
    for uniform in (writer.attention, attention):
        nn.init.zeros_(uniform.q_proj.weight)
        nn.init.zeros_(uniform.q_proj.bias)
    context, words, bias = torch.randn(1, 4, 32), torch.randn(1, 3, 32), torch.zeros(1, 1, 1, 3)
    written = [writer(context, words, bias, pixels, positions)[0] for positions in (here, there)]
    assert not torch.allclose(*written, atol=1e-3)
    read = [attention(pixels, positions, [(4, 4)]) for positions in (here, there)]
    assert not torch.allclose(*read, atol=1e-3)


@pytest.mark.parametrize("stride", [2, 4, 8])
@torch.no_grad()
def test_upsampler_starts_as_bilinear_interpolation(stride):
    config = tiny_config(feature_strides=[stride, 2 * stride, 4 * stride, 8 * stride])
    upsampler = JMCELNConvexUpsampler(config)
    nn.init.zeros_(upsampler.weights.weight)
    line = upsampler.weights.initial_bias().exp() - 1e-2
    upsampler.weights.bias.copy_(line.clamp(min=1e-12).log())
    logits = torch.randn(2, 3, 5, 6)
    weights = upsampler(torch.randn(2, 3, 5 * stride, 6 * stride), torch.randn(2, 5, 6, 16))
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 5 * stride, 6 * stride))
    expected = nn.functional.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    upsampled = upsampler.upsample(logits.flatten(0, 1), weights)
    torch.testing.assert_close(upsampled, expected.flatten(0, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_upsampler_against_a_loop_over_pixels():
    upsampler = JMCELNConvexUpsampler(tiny_config())
    # Two images with three expressions each. The cells reach beyond the images.
    logits = torch.randn(6, 3, 4)
    weights = torch.rand(2, 9, 11, 15).softmax(1)
    upsampled = upsampler.upsample(logits, weights)
    assert upsampled.shape == (6, 11, 15)
    for row in range(11):
        for column in range(15):
            value = torch.zeros(6)
            for neighbor in range(9):
                cell_row = min(max(row // 4 + neighbor // 3 - 1, 0), 2)
                cell_column = min(max(column // 4 + neighbor % 3 - 1, 0), 3)
                weight = weights[:, neighbor, row, column].repeat_interleave(3)
                value += weight * logits[:, cell_row, cell_column]
            torch.testing.assert_close(upsampled[:, row, column], value)


def test_positions_are_relative_to_the_image():
    coarse = sine_position_embedding(3, 3, 32, torch.device("cpu"), torch.float32)
    fine = sine_position_embedding(9, 9, 32, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(coarse[0, 4], fine[0, 40])
    assert coarse.shape == (1, 9, 32)


def test_dice_loss_against_its_formula():
    probabilities, targets = torch.rand(3, 4, 4), torch.randint(0, 2, (3, 4, 4)).float()
    for loss, probability, target in zip(
        dice_loss(probabilities, targets, torch.ones(3, 4, 4)), probabilities, targets, strict=True
    ):
        expected = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        torch.testing.assert_close(loss, expected)


def test_mask_loss_against_its_formula():
    config = tiny_config()
    logits, targets = torch.randn(2, 5, 5), torch.rand(2, 5, 5)
    weights = torch.randint(0, 2, (2, 5, 5)).float()
    losses = mask_loss(logits, targets, weights, torch.tensor([True, False]), config)
    for index, loss in enumerate(losses):
        counted = weights[index] == 1
        logit, target = logits[index][counted], targets[index][counted]
        expected = 2.0 * nn.functional.binary_cross_entropy_with_logits(logit, target)
        if index == 0:
            probability = logit.sigmoid()
            overlap, total = (probability * target).sum(), probability.sum() + target.sum()
            expected = expected + 1 - (2 * overlap + 1) / (total + 1)
        torch.testing.assert_close(loss, expected)


def test_cells_of_every_grid_cover_what_their_pixels_do():
    targets, weights = torch.randint(0, 2, (2, 3, 16, 24)).float()
    targets = targets * weights
    covered = cover_cells(targets, weights, [(4, 6), (8, 12), (4, 6)])
    for (rows, columns), (share, counted) in covered.items():
        blocks = [each.view(3, rows, 16 // rows, columns, 24 // columns) for each in (targets, weights)]
        hit, known = (block.sum((2, 4)) for block in blocks)
        torch.testing.assert_close(counted, known / (16 // rows * 24 // columns))
        torch.testing.assert_close(share[known > 0], (hit / known)[known > 0])


def test_perfect_logits_have_almost_no_loss_and_wrong_ones_much():
    config = tiny_config()
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, 16:48, 16:48] = 1
    stages = tuple(
        nn.functional.avg_pool2d((labels * 40.0 - 20)[:, None], 64 // size).squeeze(1) for size in (4, 8, 16)
    )
    presence = torch.tensor([20.0, -20.0])

    def losses(sign: float) -> torch.Tensor:
        return expression_losses(
            sign * (labels * 40.0 - 20),
            tuple(sign * stage for stage in stages),
            sign * presence,
            labels,
            (64, 64),
            config,
        )

    assert (losses(1.0) < 0.01).all()
    assert (losses(-1.0) > 10).all()


def test_ignored_pixels_count_for_nothing():
    model, inputs = random_model(), random_inputs(1, 2)
    labels = random_labels(inputs)
    ignored = labels.clone()
    ignored[..., 40:, :] = 255
    ignored_too = labels.clone()
    ignored_too[..., 40:, :] = -100
    loss = model(**inputs, labels=ignored).loss
    torch.testing.assert_close(model(**inputs, labels=ignored_too).loss, loss)
    assert not torch.isclose(model(**inputs, labels=labels).loss, loss)
    everything = torch.full_like(labels, 255)
    everything[:, 0] = labels[:, 0]
    assert model(**inputs, labels=everything).loss.isfinite()


def test_all_background_is_learned_as_no_target():
    model, inputs = random_model(), random_inputs(1, 2)
    labels = torch.zeros(1, 2, 64, 64, dtype=torch.long)
    labels[:, 0, :32, :32] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    outputs = model(**inputs)
    assert outputs.presence_logits[0, 0] > 1
    assert outputs.presence_logits[0, 1] < -1
    predicted = outputs.logits[0, 0] > 0
    target = labels[0, 0] == 1
    assert (predicted & target).sum() / (predicted | target).sum() > 0.9


def test_loss_of_parts_adds_up_to_the_loss_of_the_whole():
    model, inputs = random_model(), random_inputs(2, 3)
    inputs["attention_mask"][1, 2] = 0
    labels = random_labels(inputs)
    whole = model(**inputs, labels=labels).loss
    parts = [
        model(**{name: value[image : image + 1] for name, value in inputs.items()}, labels=labels[image : image + 1],
              num_items_in_batch=torch.tensor(5)).loss
        for image in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(sum(parts), whole)


@torch.no_grad()
def test_what_is_read_depends_on_the_way_between_two_places():
    # One key a query: its value comes back turned by the way between them, wherever the two lie.
    attention = random_model().cascade.stages[0].writer.attention
    query, key = torch.randn(2, 1, 1, 32)
    places = torch.tensor([[0.2, 0.1], [0.3, 0.5]])
    ways = [axial_angles(places + shift, 8) for shift in (0.0, 0.4)]
    near, far = (attention(query, key, key, query_angles=way[:1], key_angles=way[1:])[0] for way in ways)
    torch.testing.assert_close(near, far)
    back = attention(query, key, key, query_angles=ways[0][1:], key_angles=ways[0][:1])[0]
    assert not torch.allclose(near, back, atol=1e-2)
    plain = attention(query, key, key)[0]
    torch.testing.assert_close(attention(query, key, key, query_angles=ways[0][:1], key_angles=ways[0][:1])[0], plain)


@torch.no_grad()
def test_scores_depend_on_the_way_between_two_places():
    attention = random_model().cascade.stages[0].writer.attention
    query, keys = torch.randn(1, 1, 32), torch.randn(1, 3, 32)
    here, others = torch.tensor([[0.2, 0.3]]), torch.tensor([[0.1, 0.3], [0.3, 0.3], [0.4, 0.6]])
    weights = [
        attention(
            query, keys, keys, None, True, query_angles=axial_angles(here + shift, 8),
            key_angles=axial_angles(others + shift, 8),
        )[1]
        for shift in (0.0, 0.3)
    ]  # fmt: skip
    torch.testing.assert_close(*weights)
    mirrored = axial_angles(2 * here - others, 8)
    other_side = attention(query, keys, keys, None, True, query_angles=axial_angles(here, 8), key_angles=mirrored)[1]
    assert not torch.allclose(weights[0], other_side, atol=1e-3)


def test_cells_lie_at_their_centers():
    expected = torch.tensor([[0.25, 1 / 6], [0.25, 0.5], [0.25, 5 / 6], [0.75, 1 / 6], [0.75, 0.5], [0.75, 5 / 6]])
    torch.testing.assert_close(cell_centers(2, 3, torch.device("cpu")), expected)
