"""The single-person estimator: crop geometry, targets, loss, decoding."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from personlab import params
from personlab.codec.fields import cell_positions
from personlab.data.crops import Person, crop_transform, cut, mirrored, person_crop, training_crop
from personlab.data.transform import PADDING, Transform
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.estimator import Estimator, PersonFields, build, decode, from_checkpoint, person_targets
from personlab.skeleton import COCO_PERSON
from tests.batches import save_weights
from tests.coco_person import FLIP, K

HEIGHT, WIDTH, STRIDE, RADIUS = 129, 97, 8, 10.0
SETTINGS = params.Estimator(width=4, stride=8, crop_height=129, crop_width=97, radius=10.0)
SHAPE = (17, 13)


def spread_keypoints(seed: int = 0) -> Tensor:
    """1 x K x 2 keypoints inside the crop, clear of its border."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.uniform(RADIUS, [WIDTH - RADIUS, HEIGHT - RADIUS], (1, K, 2))).float()


def perfect_fields(keypoints: Tensor, labelled: Tensor) -> PersonFields:
    towards, disk = person_targets(keypoints, labelled, cell_positions(*SHAPE, STRIDE), radius=RADIUS)
    return PersonFields(heatmap=torch.where(disk, 20.0, -20.0), short=towards)


class TestCropTransform:
    def test_a_tall_box_fills_the_height_with_its_context(self) -> None:
        transform = crop_transform((10, 20, 8, 64), height=HEIGHT, width=WIDTH, context=1.25)
        assert transform.scale == pytest.approx(128 / 80)
        corners = transform.points(np.array([[14, 20], [14, 84]], np.float32))
        np.testing.assert_allclose(corners, [[48, 64 - 51.2], [48, 64 + 51.2]], rtol=1e-6)

    def test_a_wide_box_fills_the_width(self) -> None:
        transform = crop_transform((0, 0, 96, 10), height=HEIGHT, width=WIDTH, context=1.0)
        corners = transform.points(np.array([[0, 5], [96, 5]], np.float32))
        np.testing.assert_allclose(corners, [[0, 64], [96, 64]], atol=1e-5)

    def test_inverse(self) -> None:
        transform = crop_transform((3, 7, 21, 30), height=HEIGHT, width=WIDTH)
        points = np.array([[0.5, 1.5], [96, 128]], np.float32)
        np.testing.assert_allclose(transform.points(transform.inverse_points(points)), points, atol=1e-4)


class TestCut:
    @pytest.mark.parametrize(
        "box", [(100, 80, 30, 60), (0, 0, 20, 50), (180, 120, 30, 50), (5, 5, 180, 140), (90, 60, 6, 14)]
    )
    def test_equals_the_whole_image_resampled(self, box: tuple[float, float, float, float]) -> None:
        image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
        transform = crop_transform(box, height=HEIGHT, width=WIDTH)
        whole = transform.image(image).astype(int)
        # OpenCV interpolates at 1/32 pixel, so another origin may round differently.
        assert np.abs(cut(image, transform).astype(int) - whole).mean() < 3

    def test_exact_where_the_lattice_is_shared(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
        transform = Transform(scale=1.0, shift=(-30.0, -20.0), height=65, width=49)
        np.testing.assert_array_equal(cut(image, transform), image[20:85, 30:79])

    def test_a_crop_outside_the_image_is_padding(self) -> None:
        image = np.zeros((20, 20, 3), np.uint8)
        assert (cut(image, Transform(1.0, (500.0, 500.0), 33, 33)) == PADDING).all()

    def test_detail_removes_what_is_finer_and_keeps_what_is_coarser(self) -> None:
        column = np.arange(200)
        fine = np.where(column % 2 == 0, 255, 0)
        coarse = 127 + 100 * np.sin(column / 20)
        transform = Transform(1.0, (0.0, 0.0), 129, 129)
        for row, most, least in ((fine, 8.0, 0.0), (coarse, 80.0, 60.0)):
            image = np.broadcast_to(row[None, :, None], (160, 200, 3)).astype(np.uint8)
            shown = cut(np.ascontiguousarray(image), transform, detail=0.25)
            assert least <= shown[8:-8, 8:-8].std() <= most

    def test_detail_does_not_move_anything(self) -> None:
        image = np.zeros((160, 160, 3), np.uint8)
        cv2.circle(image, (60, 90), 6, (255, 255, 255), -1)
        shown = cut(image, Transform(1.0, (0.0, 0.0), 129, 129), detail=0.3)[..., 0].astype(float)
        y, x = np.mgrid[:129, :129]
        centre = [(shown * x).sum() / shown.sum(), (shown * y).sum() / shown.sum()]
        np.testing.assert_allclose(centre, [60, 90], atol=0.3)


class TestTrainingCrop:
    IMAGE = cv2.circle(np.zeros((120, 160, 3), np.uint8), (60, 50), 3, (255, 255, 255), -1)

    @pytest.fixture
    def person(self) -> Person:
        """A person with a white dot at the nose, (60, 50)."""
        keypoints = np.zeros((K, 2), np.float32)
        keypoints[0] = (60, 50)
        return Person(1, keypoints, np.arange(K) == 0, (40, 30, 45, 60), 2000.0)

    def crop(self, person: Person, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        return training_crop(self.IMAGE, person, rng, FLIP, height=HEIGHT, width=WIDTH)

    def test_the_keypoint_moves_with_the_image(self, person: Person) -> None:
        for seed in range(40):
            image, keypoints, labelled = self.crop(person, seed)
            bright = torch.nonzero(image[0] >= image[0].max() * 0.6).float().mean(0).flip(0)
            assert labelled.tolist() == [True] + [False] * (K - 1)
            assert torch.dist(bright, keypoints[0]) < 3

    def test_the_same_random_numbers_give_the_same_crop(self, person: Person) -> None:
        first, other, again = (self.crop(person, seed) for seed in (7, 8, 7))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])

    def test_a_small_person_height_lowers_the_resolution(self, person: Person) -> None:
        sharp, _ = person_crop(self.IMAGE, person.box, height=HEIGHT, width=WIDTH)
        coarse, transform = person_crop(self.IMAGE, person.box, height=HEIGHT, width=WIDTH, person_height=12)
        assert transform == crop_transform(person.box, height=HEIGHT, width=WIDTH)
        assert coarse.max() < 0.8 * sharp.max()


class TestTargets:
    def test_disk_and_offsets(self) -> None:
        keypoints = spread_keypoints()
        position = cell_positions(*SHAPE, STRIDE)
        towards, disk = person_targets(keypoints, torch.ones(1, K, dtype=torch.bool), position, radius=RADIUS)
        for k in range(K):
            for i in range(SHAPE[0]):
                for j in range(SHAPE[1]):
                    x, y = keypoints[0, k].tolist()
                    assert disk[0, k, i, j].item() == (math.hypot(x - 8 * j, y - 8 * i) <= RADIUS)
                    assert towards[0, k, :, i, j].tolist() == pytest.approx([x - 8 * j, y - 8 * i], abs=1e-4)

    def test_unlabelled_has_no_disk(self) -> None:
        labelled = torch.arange(K)[None] % 2 == 0
        _, disk = person_targets(spread_keypoints(), labelled, cell_positions(*SHAPE, STRIDE), radius=RADIUS)
        assert torch.equal(disk.flatten(2).any(2), labelled)

    def test_mirrored_crop_has_mirrored_targets(self) -> None:
        keypoints, labelled = spread_keypoints(5), torch.rand(1, K, generator=torch.manual_seed(0)) < 0.7
        image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        other = mirrored(image, keypoints[0].numpy(), labelled[0].numpy(), FLIP)
        position = cell_positions(*SHAPE, STRIDE)
        towards, disk = person_targets(keypoints, labelled, position, radius=RADIUS)
        towards_m, disk_m = person_targets(
            torch.from_numpy(other[1])[None], torch.from_numpy(other[2])[None], position, radius=RADIUS
        )
        assert torch.equal(disk_m, disk.flip(-1)[:, list(FLIP)])
        sign = torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        torch.testing.assert_close(towards_m, towards.flip(-1)[:, list(FLIP)] * sign)
        np.testing.assert_array_equal(other[0][:, ::-1], image)


class TestDecode:
    @pytest.mark.parametrize("seed", range(5))
    def test_perfect_fields(self, seed: int) -> None:
        keypoints = spread_keypoints(seed)
        fields = perfect_fields(keypoints, torch.ones(1, K, dtype=torch.bool))
        found = decode(fields, SETTINGS)
        assert (found[..., :2] - keypoints).abs().max() < 0.5
        assert found[..., 2].min() > 0.5

    def test_empty_fields_have_no_confidence(self) -> None:
        fields = perfect_fields(spread_keypoints(), torch.zeros(1, K, dtype=torch.bool))
        found = decode(fields, SETTINGS)
        assert found[..., 2].max() < 1e-3

    def test_batch_is_single(self) -> None:
        fields = [perfect_fields(spread_keypoints(s), torch.ones(1, K, dtype=torch.bool)) for s in (1, 2)]
        both = PersonFields(torch.cat([f.heatmap for f in fields]), torch.cat([f.short for f in fields]))
        torch.testing.assert_close(decode(both, SETTINGS), torch.cat([decode(f, SETTINGS) for f in fields]))


class TestEstimator:
    @pytest.fixture
    def estimator(self) -> Estimator:
        torch.manual_seed(0)
        return Estimator(SETTINGS, skeleton=COCO_PERSON)

    def test_shapes(self, estimator: Estimator) -> None:
        crops = torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8)
        fields = estimator(crops)
        assert fields.heatmap.shape == (2, K, *SHAPE)
        assert fields.short.shape == (2, K, 2, *SHAPE)

    def test_perfect_fields_lose_nothing(self, estimator: Estimator) -> None:
        keypoints, labelled = spread_keypoints(), torch.ones(1, K, dtype=torch.bool)
        assert estimator.loss(perfect_fields(keypoints, labelled), keypoints, labelled) < 1e-4

    def test_an_offset_error_of_one_radius_costs_one_per_axis(self, estimator: Estimator) -> None:
        keypoints, labelled = spread_keypoints(), torch.ones(1, K, dtype=torch.bool)
        perfect = perfect_fields(keypoints, labelled)
        off = PersonFields(perfect.heatmap, perfect.short + RADIUS)
        assert estimator.loss(off, keypoints, labelled).item() == pytest.approx(2.0, abs=1e-3)

    def test_unlabelled_keypoints_define_nothing(self, estimator: Estimator) -> None:
        keypoints, labelled = spread_keypoints(), torch.arange(K)[None] < 9
        fields = perfect_fields(keypoints, labelled)
        random = torch.Generator().manual_seed(0)
        noise = torch.randn(fields.heatmap.shape, generator=random) * ~labelled[..., None, None] * 50
        noisy = PersonFields(fields.heatmap + noise, fields.short + noise[:, :, None])
        torch.testing.assert_close(
            estimator.loss(noisy, keypoints, labelled), estimator.loss(fields, keypoints, labelled)
        )

    def test_without_labelled_keypoints_the_loss_is_zero(self, estimator: Estimator) -> None:
        fields = estimator(torch.zeros(1, 3, HEIGHT, WIDTH))
        loss = estimator.loss(fields, spread_keypoints(), torch.zeros(1, K, dtype=torch.bool))
        assert loss.item() == 0

    def test_learns_one_crop(self) -> None:
        torch.manual_seed(0)
        small = SETTINGS.model_copy(update={"crop_height": 65, "crop_width": 49})
        estimator = Estimator(small, skeleton=COCO_PERSON)
        image = torch.randint(0, 256, (1, 3, 65, 49), generator=torch.Generator().manual_seed(0))
        keypoints, labelled = spread_keypoints() / 2, torch.ones(1, K, dtype=torch.bool)
        optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-2)
        for _ in range(60):
            loss = estimator.loss(estimator(image), keypoints, labelled)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = decode(estimator(image), small)[..., :2]
        assert (found - keypoints).norm(dim=-1).median() < 3

    def test_estimates_in_image_pixels(self, estimator: Estimator) -> None:
        crop = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        estimator.eval()
        plain = Transform(1.0, (0.0, 0.0), HEIGHT, WIDTH)
        other = Transform(0.5, (10.0, -20.0), HEIGHT, WIDTH)
        one, two = estimator.estimate([crop, crop], [plain, other])
        np.testing.assert_allclose(two[:, :2], (one[:, :2] - (10, -20)) / 0.5, atol=1e-3)
        np.testing.assert_allclose(two[:, 2], one[:, 2])

    def test_loads_from_its_checkpoint(self, estimator: Estimator, tmp_path: Path) -> None:
        path = tmp_path / "estimator.safetensors"
        checkpoint.save(path, estimator.state_dict(), estimator.card({"steps": 0}))
        loaded = from_checkpoint(path, skeleton=COCO_PERSON)
        image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH))
        torch.testing.assert_close(loaded(image).heatmap, estimator.eval()(image).heatmap)

    def test_another_network_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "network.safetensors"
        checkpoint.save(path, {"weight": torch.zeros(1)}, {"format": "personlab-1"})
        with pytest.raises(UserError, match="not an estimator"):
            from_checkpoint(path, skeleton=COCO_PERSON)


class TestBuild:
    SETTINGS = SETTINGS.model_copy(update={"width": 8, "init": "network.safetensors"})

    def test_a_backbone_from_a_whole_network(self, tmp_path: Path) -> None:
        given = checkpoint.load_weights(save_weights(tmp_path / "network.safetensors"))
        estimator = build(self.SETTINGS, tmp_path, skeleton=COCO_PERSON).train()
        estimator(torch.zeros(2, 3, HEIGHT, WIDTH))  # moves no statistics: they belong to the weights
        for name, tensor in estimator.backbone.state_dict().items():
            assert torch.equal(tensor, given[f"backbone.{name}"]), name

    def test_a_trained_estimator_does_not_need_them(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "network.safetensors")
        estimator = build(self.SETTINGS, tmp_path, skeleton=COCO_PERSON).eval()
        checkpoint.save(tmp_path / "estimator.safetensors", estimator.state_dict(), estimator.card({}))
        (tmp_path / "network.safetensors").unlink()
        image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH))
        loaded = from_checkpoint(tmp_path / "estimator.safetensors", skeleton=COCO_PERSON)
        assert torch.equal(loaded(image).heatmap, estimator(image).heatmap)

    def test_another_backbone_is_refused(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "network.safetensors")
        with pytest.raises(UserError, match="do not fit"):
            build(self.SETTINGS.model_copy(update={"width": 4}), tmp_path, skeleton=COCO_PERSON)
