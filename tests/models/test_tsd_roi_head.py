"""A whole small detector with the TSD RoI head, built from a config as any user of mmdet would."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torchvision.ops import box_iou

import tsd.models  # noqa: F401  registers the heads

CLASSES, CHANNELS, P = 3, 8, 7
CODER = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
ASSIGN = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}
SAMPLE = {"type": "RandomSampler", "num": 32, "pos_fraction": 0.25}
PROPOSALS = {"nms_pre": 100, "max_per_img": 20, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}


def extractor(size):
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 2},
        "out_channels": CHANNELS,
        "featmap_strides": [4, 8, 16, 32],
    }


def config(mask=False, **head):
    roi_head = {
        "type": "TSDRoIHead",
        "bbox_roi_extractor": extractor(P),
        "bbox_head": {
            "type": "TSDBBoxHead",
            "in_channels": CHANNELS,
            "fc_out_channels": 16,
            "delta_channels": 8,
            "num_classes": CLASSES,
            "bbox_coder": CODER | {"target_stds": [0.1, 0.1, 0.2, 0.2]},
            **head,
        },
    }
    if mask:
        roi_head["mask_roi_extractor"] = extractor(14)
        roi_head["mask_head"] = {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": CHANNELS,
            "conv_out_channels": CHANNELS,
            "num_classes": CLASSES,
        }
    return {
        "type": "MaskRCNN" if mask else "FasterRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [120.0] * 3,
            "std": [60.0] * 3,
            "pad_size_divisor": 32,
            "pad_mask": mask,
        },
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "stem_channels": 8,
            "out_indices": (0, 1, 2, 3),
            "frozen_stages": -1,
            "norm_cfg": {"type": "BN"},
            "norm_eval": False,
        },
        "neck": {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": CHANNELS, "num_outs": 5},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": CHANNELS,
            "feat_channels": CHANNELS,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [4],
                "ratios": [1.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": CODER | {"target_stds": [1.0] * 4},
        },
        "roi_head": roi_head,
        "train_cfg": {
            "rpn": {
                "assigner": ASSIGN | {"match_low_quality": True},
                "sampler": SAMPLE | {"add_gt_as_proposals": False},
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": PROPOSALS,
            "rcnn": {
                "assigner": ASSIGN | {"match_low_quality": False},
                "sampler": SAMPLE | {"add_gt_as_proposals": True},
                "pos_weight": -1,
                "mask_size": 28,
                "debug": False,
            },
        },
        "test_cfg": {
            "rpn": PROPOSALS,
            "rcnn": {
                "score_thr": 0.0,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 15,
                "mask_thr_binary": 0.5,
            },
        },
    }


@pytest.fixture(autouse=True)
def scope():
    if not DefaultScope.check_instance_created("tests"):
        DefaultScope.get_instance("tests", scope_name="mmdet")


def detector(**options):
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config(**options)))
    model.init_weights()
    return model


def data(mask=False, boxes=((10.0, 12.0, 60.0, 70.0), (40.0, 30.0, 110.0, 90.0))):
    """Two pictures of different sizes; the second was scaled by 2 and 0.5."""
    generator = torch.Generator().manual_seed(1)
    inputs, samples = [], []
    for (height, width), factor in (((128, 160), (1.0, 1.0)), ((96, 128), (2.0, 0.5))):
        inputs.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        sample = DetDataSample(
            metainfo={
                "img_shape": (height, width),
                "ori_shape": (int(height / factor[1]), int(width / factor[0])),
                "scale_factor": factor,
                "batch_input_shape": (128, 160),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.arange(len(boxes)) % CLASSES
        )
        if mask:
            sample.gt_instances.masks = BitmapMasks.random(len(boxes), height, width)
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def train_loss(model, batch):
    model.train()
    batch = model.data_preprocessor(batch, training=True)
    return model.parse_losses(model.loss(batch["inputs"], batch["data_samples"]))


def predict(model, batch, keep=True, rescale=True):
    model.eval()
    model.roi_head.test_cfg.keep_proposals = keep
    batch = model.data_preprocessor(batch, training=False)
    with torch.no_grad():
        samples = model.predict(batch["inputs"], batch["data_samples"], rescale=rescale)
    return [sample.pred_instances for sample in samples]


def test_a_step_of_training_reaches_every_parameter_and_lowers_the_loss():
    model = detector(pc_cls=True, pc_loc=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(3)
    first, log = train_loss(model, data())
    head = ("loss_cls", "loss_bbox", "loss_tsd_cls", "loss_tsd_bbox", "loss_pc_cls", "loss_pc_loc")
    assert set(log) == {"loss", "loss_rpn_cls", "loss_rpn_bbox", *head, "acc", "tsd_acc"}
    assert log["loss"].item() == pytest.approx(sum(log[name].item() for name in log if "loss_" in name), rel=1e-5)
    first.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    torch.manual_seed(3)  # the same RoIs are drawn, as nothing else is random
    second, _ = train_loss(model, data())
    assert second < first


def test_only_torchs_generator_decides_what_is_drawn():
    losses = []
    for _ in range(2):
        model = detector()
        torch.manual_seed(5)
        losses.append(train_loss(model, data())[0].item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("count", [0, 1])
def test_pictures_without_objects_train(count):
    model = detector(pc_cls=True, pc_loc=True)
    batch = data()
    for sample in batch["data_samples"][count:]:
        sample.gt_instances = sample.gt_instances[:0]
    loss, _ = train_loss(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.roi_head.parameters())


def test_the_proposals_kept_are_those_of_each_detection():
    """Any detection is the decoded P̂r beside it, and P̂r is P translated; nothing else is changed by keeping them."""
    model = detector(joint_sibling=False, pc_cls=False, pc_loc=False)
    torch.nn.init.constant_(model.roi_head.bbox_head.fc_reg.weight, 0.0)  # deltas of zero: the box is P̂r itself
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=1.0)
    kept, plain = predict(model, data(), rescale=False), predict(model, data(), keep=False, rescale=False)
    sizes = [(128, 160), (96, 128)]
    for result, other, (height, width) in zip(kept, plain, sizes):
        assert len(result) == len(other) == 15
        for name in ("bboxes", "scores", "labels"):
            assert torch.equal(result[name], other[name])
        limit = result.bboxes.new_tensor([width, height, width, height])
        torch.testing.assert_close(result.bboxes, result.reg_proposals.clamp(min=0).minimum(limit), atol=1e-4, rtol=0)
        moved = result.reg_proposals - result.proposals
        assert moved.abs().max() > 0.1
        torch.testing.assert_close(moved[:, :2], moved[:, 2:], atol=1e-4, rtol=0)
        assert result.cls_points.shape == (15, P, P, 2)
        # ΔC moves each point by at most a few tenths of the RoI: none leaves its proposal's neighbourhood.
        centre = (result.proposals[:, :2] + result.proposals[:, 2:]) / 2
        side = result.proposals[:, 2:] - result.proposals[:, :2]
        assert ((result.cls_points.mean(dim=(1, 2)) - centre).abs() < side).all()


@pytest.mark.parametrize("mask", [False, True])
def test_proposals_and_points_are_in_the_original_pictures_pixels(mask):
    model = detector(mask=mask)
    scaled, original = (predict(model, data(mask), rescale=rescale) for rescale in (False, True))
    for small, large, factor in zip(scaled, original, ((1.0, 1.0), (2.0, 0.5))):
        four = small.bboxes.new_tensor(factor * 2)
        for name in ("bboxes", "proposals", "reg_proposals"):
            torch.testing.assert_close(large[name], small[name] / four)
        torch.testing.assert_close(large.cls_points, small.cls_points / four[:2])
    if mask:
        assert original[1].masks.shape == (len(original[1]), 192, 64)


def test_a_mask_branch_trains_with_it():
    model = detector(mask=True)
    loss, log = train_loss(model, data(mask=True))
    loss.backward()
    assert log["loss_mask"] > 0
    assert all(p.grad is not None for p in model.roi_head.parameters())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("counts", [(0, 0), (0, 4)])
def test_pictures_without_proposals_have_no_detections(counts, keep):
    model = detector().eval()
    model.roi_head.test_cfg.keep_proposals = keep
    features = tuple(torch.randn(2, CHANNELS, 32 // 2**level, 40 // 2**level) for level in range(5))
    boxes = torch.tensor([[10.0, 10.0, 50.0, 60.0]]).repeat(4, 1)
    proposals = [InstanceData(bboxes=boxes[:count]) for count in counts]
    with torch.no_grad():
        results = model.roi_head.predict(features, proposals, data()["data_samples"], rescale=True)
    for result, count in zip(results, counts):
        assert (len(result) > 0) is (count > 0)
        assert result.bboxes.shape == (len(result), 4)
        assert ("proposals" in result) is keep
        if keep:
            assert result.cls_points.shape == (len(result), P, P, 2)


def test_plain_forward_gives_scores_and_deltas_of_every_proposal():
    model = detector().eval()
    batch = model.data_preprocessor(data(), training=False)
    with torch.no_grad():
        results = model.forward(**batch, mode="tensor")
    scores, deltas = results[-1]
    assert scores.shape[1] == CLASSES + 1
    assert deltas.shape == (len(scores), 4 * CLASSES)


def test_with_zero_offsets_the_branches_see_what_roi_align_sees():
    """Our pooling, of P too, and mmdet's agree inside the detector: levels, strides, samples and alignment."""
    model = detector().eval()
    head = model.roi_head.bbox_head
    for layers in head.delta.values():
        torch.nn.init.zeros_(layers[-1].weight)
    seen = []
    head.cls_fcs.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    head.reg_fcs.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    features, rois = pyramid_and_rois()
    with torch.no_grad():
        feats = model.roi_head._bbox_forward(features, rois)["bbox_feats"]
        expected = model.roi_head.bbox_roi_extractor(features[:4], rois)
    for found in (*seen, feats.flatten(1)):
        torch.testing.assert_close(found, expected.flatten(1), atol=1e-5, rtol=1e-5)


def pyramid_and_rois():
    features = tuple(torch.randn(2, CHANNELS, 64 // 2**level, 64 // 2**level) for level in range(5))
    corner = torch.rand(40, 2) * 150
    boxes = torch.cat((corner, corner + torch.rand(40, 2) ** 2 * 400 + 4), dim=1)
    return features, torch.cat((torch.arange(40)[:, None] % 2, boxes), dim=1)


def pooled_with(change):
    """The model, and what its RoI head pools of P when its extractor is changed."""
    changed = config()
    changed["roi_head"]["bbox_roi_extractor"]["roi_layer"] |= change
    model = MODELS.build(ConfigDict(changed)).eval()
    features, rois = pyramid_and_rois()
    with torch.no_grad():
        feats = model.roi_head._bbox_forward(features, rois)["bbox_feats"]
        return feats, model.roi_head.bbox_roi_extractor(features[:4], rois)


def test_another_way_of_pooling_p_is_left_to_its_extractor():
    ours, extractors = pooled_with({"aligned": False})
    assert torch.equal(ours, extractors)


def test_pooling_p_by_maxima_is_left_to_its_extractor_which_has_only_means():
    with pytest.raises(RuntimeError, match="roi_align with pool_mode='max' is not here"):
        pooled_with({"pool_mode": "max"})


def test_it_can_learn_one_picture():
    """Eighty steps on one batch: the objects are found, and with their classes."""
    model = detector(joint_sibling=True, pc_cls=True, pc_loc=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = data()
    for _ in range(80):
        loss, _ = train_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
    # Statistics of so few pictures say little: normalise as in training.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    for result, sample in zip(predict(model, batch, rescale=False), batch["data_samples"]):
        truth = sample.gt_instances
        for box, label in zip(truth.bboxes, truth.labels):
            own = result[result.labels == label]
            best = own.scores.argmax()
            assert own.scores[best] > 0.5
            assert box_iou(own.bboxes[best][None], box[None]).item() > 0.5
