"""The shape of the denoising network, as plain data."""
import pytest

from ldm.modules.diffusionmodules.block_plan import DownStage, HeadRule, Heads, ResStage, plan_unet


@pytest.mark.parametrize(
    ("rule", "heads"),
    [
        # given count: the width is what it leaves …
        (HeadRule(num_heads=8, legacy=False), Heads(8, 40)),
        (HeadRule(num_heads=8, legacy=False, spatial_transformer=True), Heads(8, 40)),
        (HeadRule(num_heads=8, legacy=True, spatial_transformer=True), Heads(8, 40)),
        # … but the older rule without transformers leaves it to the attention block
        (HeadRule(num_heads=8, legacy=True), Heads(8, -1)),
        # given width: the count is how often it fits
        (HeadRule(num_head_channels=32, legacy=False), Heads(10, 32)),
        (HeadRule(num_head_channels=32, legacy=True), Heads(10, 32)),
        (HeadRule(num_head_channels=32, legacy=True, spatial_transformer=True), Heads(10, 32)),
        (HeadRule(num_head_channels=60, legacy=False, spatial_transformer=True), Heads(5, 60)),
        (HeadRule(num_head_channels=60, legacy=True, spatial_transformer=True), Heads(5, 64)),
        (HeadRule(num_heads=8, num_head_channels=32, legacy=False), Heads(10, 32)),
    ],
)
def test_heads_of_320_channels(rule, heads):
    assert rule.at(320) == heads


def test_another_count_on_the_way_up_matters_to_attention_blocks_only():
    blocks, transformers = HeadRule(num_heads=8, num_heads_upsample=4), HeadRule(num_heads=8, num_heads_upsample=4, spatial_transformer=True)
    assert (blocks.at(320).count, blocks.at(320, upward=True).count) == (8, 4)
    assert transformers.at(320, upward=True) == transformers.at(320)


def test_rule_without_count_and_width_is_an_error():
    with pytest.raises(ValueError, match="num_heads and num_head_channels are both -1"):
        HeadRule()


def test_head_wider_than_the_channels_is_an_error():
    with pytest.raises(ValueError, match="num_head_channels 64 is wider than the 32 channels"):
        HeadRule(num_head_channels=64).at(32)


def test_two_levels_in_full():
    plan = plan_unet(32, (1, 2), num_res_blocks=1, attention_resolutions=[2], head_rule=HeadRule(num_heads=4, legacy=False))
    low = Heads(4, 16)
    assert plan.down == (ResStage(32, 32), DownStage(32), ResStage(32, 64, low))
    assert plan.middle == ResStage(64, 64, low)
    assert plan.up == (ResStage(128, 64, low), ResStage(96, 64, low, upsample=True), ResStage(96, 32), ResStage(64, 32))
    assert plan.out_channels == 32


@pytest.mark.parametrize(("mult", "blocks"), [((1, 2, 4, 4), 2), ((1,), 1), ((2, 3, 5), 3)])
def test_the_way_up_takes_every_output_of_the_way_down_once(mult, blocks):
    plan = plan_unet(32, mult, blocks, [1, 4], HeadRule(num_heads=2))
    skips = [32, *(stage.out_channels for stage in plan.down)]
    arriving = [plan.middle.out_channels, *(stage.out_channels for stage in plan.up)]
    assert len(skips) == len(plan.up) == len(mult) * (blocks + 1)
    assert [stage.in_channels - channels for stage, channels in zip(plan.up, arriving[:-1], strict=True)] == skips[::-1]
    assert sum(stage.upsample for stage in plan.up) == sum(isinstance(stage, DownStage) for stage in plan.down) == len(mult) - 1


def test_attention_stands_at_the_named_factors_and_in_the_middle():
    plan = plan_unet(32, (1, 1, 1), 1, (2,), HeadRule(num_heads=2))
    assert [stage.heads is not None for stage in plan.down if isinstance(stage, ResStage)] == [False, True, False]
    assert [stage.heads is not None for stage in plan.up] == [False, False, True, True, False, False]
    assert plan.middle.heads is not None


def test_widths_that_do_not_fit_the_norm_are_an_error():
    with pytest.raises(ValueError, match=r"model_channels 48 with channel_mult \[2, 4\] makes 48 channels; .* multiples of 32"):
        plan_unet(48, (2, 4), 1, [], HeadRule(num_heads=2))
