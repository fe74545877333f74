"""SENet-154 with the names and numbers of its published weights."""

import pytest
import torch

from tsd.models import SENet

SMALL = {"base_channels": 8}


def test_the_whole_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = SENet()
    classifier = 2048 * 1000 + 1000
    assert sum(value.numel() for value in model.parameters()) + classifier == 115_088_984


def test_parameters_are_named_as_published():
    names = set(SENet(**SMALL).state_dict())
    published = {
        "layer0.conv1.weight",
        "layer0.bn3.running_var",
        "layer1.0.downsample.0.weight",
        "layer1.0.se_module.fc1.bias",
        "layer2.7.conv2.weight",
        "layer3.35.bn3.weight",
        "layer4.0.downsample.1.num_batches_tracked",
        "layer4.2.se_module.fc2.weight",
    }
    assert published <= names
    assert {name.split(".")[0] for name in names} == {f"layer{number}" for number in range(5)}


def test_shapes_are_those_of_the_published_network():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in SENet().state_dict().items()}
    assert shapes["layer0.conv3.weight"] == (128, 64, 3, 3)
    assert shapes["layer1.0.conv2.weight"] == (256, 2, 3, 3)  # 128 channels in 64 groups
    assert shapes["layer1.0.downsample.0.weight"] == (256, 128, 1, 1)
    assert shapes["layer2.0.downsample.0.weight"] == (512, 256, 3, 3)
    assert shapes["layer4.0.conv1.weight"] == (1024, 1024, 1, 1)
    assert shapes["layer3.5.se_module.fc1.weight"] == (64, 1024, 1, 1)


def test_strides_are_4_to_32_and_channels_grow_by_stage():
    outputs = SENet(**SMALL).eval()(torch.rand(1, 3, 64, 96))
    assert [tuple(output.shape) for output in outputs] == [
        (1, 32, 16, 24),
        (1, 64, 8, 12),
        (1, 128, 4, 6),
        (1, 256, 2, 3),
    ]


def test_frozen_stages_have_no_gradient_and_fixed_statistics():
    model = SENet(frozen_stages=1, norm_eval=False, **SMALL).train()
    assert not any(value.requires_grad for value in [*model.layer0.parameters(), *model.layer1.parameters()])
    assert all(value.requires_grad for value in model.layer2.parameters())
    assert not model.layer1[0].bn1.training
    assert model.layer2[0].bn1.training
    assert not SENet(norm_eval=True, **SMALL).train().layer4[0].bn1.training


def test_deformable_convolutions_start_as_plain_ones():
    torch.manual_seed(0)
    plain = SENet(**SMALL)
    deformable = SENet(dcn={"type": "TorchvisionDCN"}, stage_with_dcn=(False, False, False, True), **SMALL)
    deformable.init_weights()
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("layer4") and "conv_offset" in name for name in missing)
    picture = torch.rand(1, 3, 128, 128)
    for first, second in zip(plain.eval()(picture), deformable.eval()(picture), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("frozen_stages", 5), ("out_indices", (0, 4))])
def test_what_names_no_stage_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        SENet(**SMALL, **{name: value})


def test_recomputing_blocks_changes_no_gradient():
    torch.manual_seed(0)
    model, again = SENet(**SMALL), SENet(with_cp=True, **SMALL)
    again.load_state_dict(model.state_dict())
    picture = torch.rand(1, 3, 64, 64)
    for network in (model, again):
        sum(output.sum() for output in network.train()(picture)).backward()
    torch.testing.assert_close(model.layer0.conv1.weight.grad, again.layer0.conv1.weight.grad)
