"""The data module: which images are used, how they are batched, and in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler

from ast_lightning.data import (
    SOURCES,
    ImageDataModule,
    LabelledImages,
    RawDataset,
    Standardization,
    TrainingBatch,
    splits,
)
from ast_lightning.data.loading import OrderedBatches, ShuffledBatches
from ast_lightning.errors import ConfigurationError

SIZES = (6, 10, 8)  # images per class


def tiny(sizes: tuple[int, ...] = SIZES, shape: tuple[int, ...] = (1, 4, 4)) -> RawDataset:
    """Training image i is filled with the value i, so that it can be recognised."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *shape).contiguous()
    test = LabelledImages(images[::2] + 100, labels[::2])
    return RawDataset("tiny", LabelledImages(images, labels), test, tuple("abc"[: len(sizes)]))


def values(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().to(torch.int64).tolist()


def module(**settings: Any) -> ImageDataModule:
    return ImageDataModule(tiny, **{"preprocessing": "none", "batch_size": 7, **settings})


def epoch_of(data: ImageDataModule, epoch: int = 0) -> list[TrainingBatch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def test_what_a_network_and_a_reader_need_to_know() -> None:
    data = ImageDataModule("digits", augmentation="color_flip", validation_fraction=0.1, preprocessing="zca")
    assert data.network_arguments == {"channels": 1, "num_classes": 10, "image_size": (8, 8)}
    description = data.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["name"] == data.name == "digits"
    assert description["counts"] == {"train": 1297 - 130, "validation": 130, "test": 500}
    assert description["preprocessing"] == {"kind": "zca", "eps": 0.1, "features": 64}
    assert description["preprocessing_fingerprint"] == data.preprocessing.fingerprint()
    assert description["augmentation"] == ["color", "flip"]
    assert data.train.images.dtype == data.test.images.dtype == torch.float32
    assert ImageDataModule("digits", name="mine").name == "mine"


def test_setup_happens_once() -> None:
    calls = []

    def source() -> RawDataset:
        calls.append(1)
        return tiny()

    data = ImageDataModule(source)
    data.prepare_data()
    for stage in ("fit", "validate", None):
        data.setup(stage)
    assert data.train.images is data.train.images
    assert len(calls) == 1


def test_statistics_come_from_the_training_split_alone() -> None:
    data = module(preprocessing="standardize", validation_fraction=0.3, per_class=3)
    torch.testing.assert_close(data.train.images.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train.images.std(correction=0), torch.tensor(1.0))
    assert abs(data.test.images.mean()) > 1


def test_statistics_made_elsewhere_can_be_used_instead() -> None:
    elsewhere = Standardization(torch.tensor([0.5]), torch.tensor([2.0]))
    data = module(preprocessing="zca")
    data.use_preprocessing(elsewhere)
    assert data.preprocessing is elsewhere
    torch.testing.assert_close(data.test.images, (tiny().test.images.float() / 255 - 0.5) / 2)
    with pytest.raises(RuntimeError, match="call use_preprocessing before setup"):
        data.use_preprocessing(elsewhere)


def test_validation_is_stratified_seeded_and_disjoint() -> None:
    data = module(validation_fraction=0.25, seed=3)
    assert data.validation is not None
    assert torch.bincount(data.validation.labels).tolist() == [2, 2, 2]  # round(1.5), round(2.5), round(2.0)
    held, kept = values(data.validation.images), values(data.train.images)
    assert sorted(held + kept) == list(range(24))
    again, other = module(validation_fraction=0.25, seed=3), module(validation_fraction=0.25, seed=4)
    assert again.validation is not None
    assert other.validation is not None
    assert values(again.validation.images) == held != values(other.validation.images)
    assert module().validation is None


def test_subsets_are_seeded_nested_and_leave_validation_alone() -> None:
    small, large = module(per_class=2, validation_fraction=0.2), module(per_class=4, validation_fraction=0.2)
    assert torch.bincount(small.train.labels).tolist() == [2, 2, 2]
    assert set(values(small.train.images)) < set(values(large.train.images))
    assert values(small.train.images) == sorted(values(small.train.images))
    assert small.validation is not None
    assert large.validation is not None
    assert torch.equal(small.validation.images, large.validation.images)
    assert values(module(per_class=2, seed=1).train.images) != values(module(per_class=2).train.images)


def test_fingerprint_follows_the_images_in_use_and_nothing_else() -> None:
    base = module().fingerprint
    assert len(base) == 16
    assert base == module(preprocessing="standardize", augmentation="flip", batch_size=3, name="other").fingerprint
    changed = [
        module(per_class=3),
        module(per_class=3, seed=1),
        module(validation_fraction=0.2),
        module(image_size=6),
        ImageDataModule(lambda: tiny((6, 8, 10))),
    ]
    assert len({base, *(data.fingerprint for data in changed)}) == 6


def test_resizing_in_memory() -> None:
    data = ImageDataModule(lambda: tiny(shape=(3, 4, 6)), preprocessing="none", image_size=8, validation_fraction=0.2)
    assert data.image_size == (8, 8)
    assert data.validation is not None
    assert data.validation.images.shape[1:] == data.test.images.shape[1:] == (3, 8, 8)
    assert values(data.train.images) == values(
        ImageDataModule(tiny, preprocessing="none", validation_fraction=0.2).train.images
    )
    assert ImageDataModule(lambda: tiny(shape=(3, 4, 6))).image_size == (4, 6)


def test_an_epoch_is_every_image_once_in_an_order_that_the_key_names() -> None:
    data = module()
    batches = epoch_of(data)
    assert len(batches) == len(data.train_dataloader()) == 4
    assert [batch.batch_size for batch in batches] == [7, 7, 7, 3]
    order = [value for batch in batches for value in values(batch.images)]
    assert sorted(order) == list(range(24))
    for batch in batches:
        assert isinstance(batch, TrainingBatch)
        assert batch.rows.tolist() == list(range(batch.batch_size))
        assert torch.equal(batch.labels, tiny().train.labels[torch.tensor(values(batch.images))])

    def order_of(data: ImageDataModule, epoch: int) -> list[int]:
        return [value for batch in epoch_of(data, epoch) for value in values(batch.images)]

    assert order_of(module(), 0) == order
    assert order_of(data, 1) != order
    data.shuffle_key = (0, "expert", 1)
    assert order_of(data, 0) != order
    assert order_of(module(seed=1), 0) != order


def test_test_and_validation_loaders_give_the_test_split_in_order() -> None:
    data = module(eval_batch_size=5)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [5, 5, 2]
        assert torch.equal(torch.cat([images for images, _ in batches]), data.test.images)
        assert torch.equal(torch.cat([labels for _, labels in batches]), data.test.labels)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 5), epoch=st.integers(0, 3))
def test_ranks_partition_the_same_global_batches(count: int, batch_size: int, world_size: int, epoch: int) -> None:
    def ranks(size: int) -> list[list[Any]]:
        samplers = [ShuffledBatches(torch.zeros(count), batch_size, lambda: (0,), rank, size) for rank in range(size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
        return [list(sampler) for sampler in samplers]

    if min(count, batch_size) < world_size:
        with pytest.raises(ConfigurationError, match=f"cannot be shared by {world_size} devices"):
            ranks(world_size)
        return
    single = torch.cat([batch.samples for batch in ranks(1)[0]])
    parts = ranks(world_size)
    assert len({len(part) for part in parts}) == 1
    start = 0
    for batch in zip(*parts, strict=True):
        size = batch[0].batch_size
        assert all(len(part.samples) > 0 and part.batch_size == size for part in batch)
        assert torch.cat([part.rows for part in batch]).sort().values.tolist() == list(range(size))
        for part in batch:
            assert torch.equal(part.samples, single[start:][part.rows])
        start += size
    assert start == count


@given(count=st.integers(0, 40), batch_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_evaluation_shares_cover_every_image_once(count: int, batch_size: int, world_size: int) -> None:
    shares = [OrderedBatches(count, batch_size, rank, world_size) for rank in range(world_size)]
    parts = [part for share in shares for part in share]
    assert sum(len(share) for share in shares) == len(parts)
    assert all(0 < len(part) <= batch_size for part in parts)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(count))


class Recorder(LightningModule):
    """Writes down the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.orders: list[list[int]] = []
        self.validated = 0

    def on_train_epoch_start(self) -> None:
        self.orders.append([])

    def training_step(self, batch: TrainingBatch, batch_index: int) -> Tensor:
        assert isinstance(batch, TrainingBatch)
        assert batch.rows.device.type == "cpu"
        self.orders[-1] += values(batch.images)
        return self.weight * batch.images.mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.validated += len(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_moves_the_epoch_on_and_resumes_it(tmp_path: Any) -> None:
    def trainer(epochs: int) -> Trainer:
        return Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )

    data, whole = module(), Recorder()
    trainer(3).fit(whole, datamodule=data)
    assert whole.orders == [
        [value for batch in epoch_of(module(), epoch) for value in values(batch.images)] for epoch in range(3)
    ]
    assert whole.validated == 3 * 12
    first = trainer(2)
    first.fit(Recorder(), datamodule=module())
    first.save_checkpoint(tmp_path / "two.ckpt")
    rest = Recorder()
    trainer(3).fit(rest, datamodule=module(), ckpt_path=tmp_path / "two.ckpt")
    assert rest.orders == whole.orders[2:]


class FakeTrainer:
    """Two devices, of which this is the second."""

    world_size, global_rank, current_epoch = 2, 1, 0


def test_an_attached_trainer_decides_the_share() -> None:
    data = module()
    data.trainer = FakeTrainer()  # type: ignore[assignment]
    batches = list(data.train_dataloader())
    assert [batch.rows.tolist() for batch in batches] == [[1, 3, 5], [1, 3, 5], [1, 3, 5], [1]]
    assert torch.equal(torch.cat([labels for _, labels in data.test_dataloader()]), data.test.labels[1::2])
    # Lightning divides the batches of no DistributedSampler, whatever trainer.use_distributed_sampler is
    for loader in (data.train_dataloader(), data.test_dataloader()):
        assert isinstance(loader.sampler, DistributedSampler)


def every_second(epoch: int, labels: Tensor) -> Tensor:
    """Epoch 0 uses the even images, epoch 1 all of them, and so on: epochs differ in length."""
    return torch.arange(0, len(labels), 2 - epoch % 2)


def test_a_curriculum_chooses_the_images_of_an_epoch() -> None:
    data = module()
    data.samples = every_second
    for epoch, wanted in ((0, list(range(0, 24, 2))), (1, list(range(24)))):
        batches = epoch_of(data, epoch)
        assert sorted(values(torch.cat([batch.images for batch in batches]))) == wanted
        assert [batch.batch_size for batch in batches] == [7] * (len(wanted) // 7) + [len(wanted) % 7]
    two = [ShuffledBatches(data.train.labels, 7, lambda: (0,), rank, 2, samples=every_second) for rank in (0, 1)]
    one = ShuffledBatches(data.train.labels, 7, lambda: (0,), samples=every_second)
    for epoch in (0, 1):
        for sampler in (*two, one):
            sampler.set_epoch(epoch)
        for whole, *parts in zip(one, *two, strict=True):
            joined = torch.empty(whole.batch_size, dtype=torch.int64)
            for part in parts:
                joined[part.rows] = part.samples
            assert torch.equal(joined, whole.samples)


def test_a_curriculum_of_all_images_is_the_usual_order() -> None:
    data = module()
    usual = epoch_of(data, 3)
    data.samples = lambda epoch, labels: torch.arange(len(labels))
    for ours, theirs in zip(epoch_of(data, 3), usual, strict=True):
        assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize(
    ("chosen", "fact"),
    [
        (torch.tensor([], dtype=torch.int64), "not indices"),
        (torch.tensor([0, 24]), "from 0 to 23"),
        (torch.tensor([-1, 2]), "from 0 to 23"),
        (torch.tensor([0.0]), "float32"),
        (torch.zeros(2, 2, dtype=torch.int64), r"\[2, 2\]"),
        ([0, 1], "list"),
    ],
)
def test_indices_of_no_images_are_rejected(chosen: Any, fact: str) -> None:
    data = module()
    data.samples = lambda epoch, labels: chosen
    with pytest.raises(ConfigurationError, match=rf"expert\.samples.*{fact}"):
        data.train_dataloader()


def test_rows_stay_on_the_cpu_when_a_batch_moves() -> None:
    data = module()
    moved = data.transfer_batch_to_device(epoch_of(data)[0], torch.device("meta"), 0)
    assert (moved.images.device.type, moved.labels.device.type, moved.rows.device.type) == ("meta", "meta", "cpu")
    images, labels = data.transfer_batch_to_device(next(iter(data.test_dataloader())), torch.device("meta"), 0)
    assert (images.device.type, labels.device.type) == ("meta", "meta")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "imagenet1k"}, rf"data\.source=imagenet1k: .*{', '.join(SOURCES)} or"),
        ({"preprocessing": "whiten"}, r"data\.preprocessing=whiten: .*standardize, zca or none"),
        ({"augmentation": "blur"}, r"data\.augmentation=blur: .*color, crop, cutout, flip, scale, rotate"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction=1\.0: it must be .* below 1\."),
        ({"validation_fraction": -0.1}, r"data\.validation_fraction=-0\.1"),
        ({"per_class": 0}, r"data\.per_class=0: it must be a whole number of at least 1"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0"),
        ({"image_size": -1}, r"data\.image_size=-1"),
    ],
)
def test_settings_that_can_never_work_are_refused_at_once(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImageDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_class": 7}, r"data\.per_class=7: class 'a' has 6 training images.*at most 6"),
        ({"per_class": 5, "validation_fraction": 0.34}, r"data\.per_class=5: class 'a' has 4 training images"),
        ({"validation_fraction": 0.95}, r"data\.validation_fraction=0\.95: .*class 'a', which has 6"),
        ({"preprocessing": "zca", "zca_max_features": 15}, r"zca_max_features=15"),
        ({"preprocessing": "standardize", "mean": [0.1, 0.2], "std": [1, 1]}, r"data\.mean=\[0\.1, 0\.2\]"),
    ],
)
def test_settings_that_do_not_suit_the_data_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        module(**settings).setup()


def broken(**changes: Any) -> RawDataset:
    raw = tiny()
    parts = {"images": raw.train.images, "labels": raw.train.labels} | {
        key: value for key, value in changes.items() if key in ("images", "labels")
    }
    names = changes.get("class_names", raw.class_names)
    return RawDataset("broken", LabelledImages(**parts), changes.get("test", raw.test), names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.rand(24, 1, 4, 4)}, r"expected uint8 \[N, C, H, W\], not torch\.float32"),
        ({"labels": torch.zeros(23, dtype=torch.int64)}, r"expected int64 labels \[24\], not torch\.int64 \[23\]"),
        ({"class_names": ("a", "b")}, "labels from 0 to 2 for 2 class names"),
        ({"class_names": ("a", "b", "c", "d")}, "class 'd' has no training images"),
        ({"test": tiny(shape=(1, 5, 5)).test}, r"differ in shape \(\[1, 4, 4\] and \[1, 5, 5\]\)"),
        ({"class_names": ("a",)}, "it has 1 class, .*add images of another class"),
        ({"images": torch.zeros(24, 8, 8, 3, dtype=torch.uint8)}, r"channels last.*permute\(0, 3, 1, 2\)"),
        ({"images": torch.zeros(24, 8, 8, 3).numpy()}, "two tensors"),
        ({"test": None}, "test images: .*not NoneType"),
        ({"images": torch.full((24, 1, 4, 4), 7, dtype=torch.uint8)}, "every pixel of the training images has .* 7"),
    ],
)
def test_a_source_that_breaks_its_promises_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImageDataModule(lambda: broken(**changes)).setup()


def test_classes_of_one_name_are_kept_apart() -> None:
    """As in ImageNet, which has two classes crane."""
    raw = broken(class_names=("crane", "dog", "crane"))
    data = ImageDataModule(lambda: raw, classes=3)
    assert torch.equal(data.train.labels, raw.train.labels)
    assert data.class_names == raw.class_names
    with pytest.raises(ConfigurationError, match=r"data\.classes=.*2 classes of the name 'crane'"):
        ImageDataModule(lambda: raw, classes=["crane", "dog"]).setup()


def failing() -> RawDataset:
    raise KeyError("no\nsuch table")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (tiny(), ["not a RawDataset", "_partial_: true"]),
        (lambda: None, ["it returns NoneType", "RawDataset"]),
        (failing, ["failing", "KeyError", "test_datamodule.py, line "]),
        (lambda path: path, ["TypeError", "path"]),
    ],
)
def test_a_source_that_gives_no_dataset_is_named_in_a_line(source: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ImageDataModule(source).setup()
    assert caught.value.option == "data.source"
    assert all(word in str(caught.value) for word in words)
    assert str(caught.value).isprintable()


def test_images_that_fill_the_memory_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.image_size=100000: 24 images .*TiB|GiB"):
        splits.resize(tiny().train, 100_000)


def test_test_images_that_are_training_images_draw_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    module().setup()
    assert "warning" not in capsys.readouterr().out
    raw = tiny()
    ImageDataModule(lambda: RawDataset("leak", raw.train, raw.train, raw.class_names)).setup()
    (line,) = capsys.readouterr().out.splitlines()
    assert "24 of 24 test images are training images" in line


def test_classes_are_chosen_and_renamed() -> None:
    whole = ImageDataModule("digits", preprocessing="none")
    part = ImageDataModule("digits", preprocessing="none", classes=["3", "1"], class_names=["three", "one"])
    assert part.class_names == ("three", "one")
    for ours, theirs in ((part.train, whole.train), (part.test, whole.test)):
        for label, digit in enumerate((3, 1)):
            assert torch.equal(ours.images[ours.labels == label], theirs.images[theirs.labels == digit])
    assert ImageDataModule("digits", classes=4).class_names == ("0", "1", "2", "3")
