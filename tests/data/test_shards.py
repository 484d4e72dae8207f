from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from tests.data.helpers import data_config, write_shards


@pytest.mark.parametrize("decode", ["once", "streaming"])
def test_shards_hold_the_same_images_as_the_folder_they_were_made_from(
    photos: Path, tmp_path: Path, decode: str
) -> None:
    pattern = write_shards(photos, tmp_path / "shards")

    shards = open_splits(data_config(pattern, source="webdataset", decode=decode))
    folder = open_splits(data_config(photos))

    assert {name: len(source) for name, source in shards.items()} == {"train": 48, "test": 18}
    for split, source in shards.items():
        everything = torch.arange(len(source))
        assert torch.equal(source.images[everything], folder[split].images)
        assert torch.equal(source.labels, folder[split].labels)


def member(name: str, *, size: int | None = None, **fields: object) -> tarfile.TarInfo:
    """A header without content; the stated size can be anything."""
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    if size is not None:
        made.pax_headers = {"size": str(size)}
    return made


def hostile_shard(path: Path, *members: tarfile.TarInfo) -> Path:
    """Four good images, then malicious members."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        for number in range(4):
            good = tarfile.TarInfo(f"{number}.png")
            good.size = out.tell()
            shard.addfile(good, io.BytesIO(out.getvalue()))
        for each in members:
            shard.addfile(each)
    return path


@pytest.mark.parametrize("size", [-512, -1024, -1536, -2048, -(2**40)])
def test_a_member_that_leads_backwards_is_not_read_for_ever(tmp_path: Path, size: int) -> None:
    path = hostile_shard(tmp_path / "a.tar", member("a.png", size=size), member("b.png"))

    # The newest Pythons take such a member for damage themselves.
    with pytest.raises(DataError, match=f"a member says that it has {size} bytes|is damaged"):
        open_splits(data_config(path, source="webdataset"))


@pytest.mark.parametrize("harm", ["a wrong byte", "cut within"])
def test_images_behind_a_damaged_header_are_not_lost_in_silence(tmp_path: Path, harm: str) -> None:
    path = hostile_shard(tmp_path / "a.tar")
    with tarfile.open(path) as shard:
        third = shard.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    if harm == "a wrong byte":
        content[third] ^= 1
    else:
        del content[third + 100 :]
    path.write_bytes(content)

    with pytest.raises(DataError, match=f"the member at byte {third:,} is damaged"):
        open_splits(data_config(path, source="webdataset"))


def test_a_shard_without_the_blocks_at_its_end_is_whole(tmp_path: Path) -> None:
    path = hostile_shard(tmp_path / "a.tar")
    with tarfile.open(path) as shard:
        end = shard.getmembers()[-1]
    os.truncate(path, end.offset_data + tarfile.BLOCKSIZE * -(-end.size // tarfile.BLOCKSIZE))

    source = open_splits(data_config(path, source="webdataset", holdout=0))["train"]

    assert len(source) == 4


@pytest.mark.parametrize("size", [2**40, 10**30])
def test_a_member_that_says_it_is_huge_is_one_line(tmp_path: Path, size: int) -> None:
    path = hostile_shard(tmp_path / "a.tar", member("a.png", size=size))

    with pytest.raises(DataError, match="cannot be read"):
        open_splits(data_config(path, source="webdataset"))


def test_links_devices_and_pipes_in_a_shard_are_no_images(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    members = [
        member(f"x{number}.png", type=kind, linkname="/etc/passwd", devmajor=1, devminor=5)
        for number, kind in enumerate(kinds)
    ]
    path = hostile_shard(tmp_path / "a.tar", *members)

    splits = open_splits(data_config(path, source="webdataset"))

    assert sum(map(len, splits.values())) == 4


def test_a_name_of_megabytes_is_not_kept(tmp_path: Path) -> None:
    path = hostile_shard(tmp_path / "a.tar", member("x" * 1_000_000 + ".png"))

    splits = open_splits(data_config(path, source="webdataset"))

    [(name, reason)] = [item for source in splits.values() for item in source.skipped]
    assert len(name) < 200
    assert "more than 4096 characters" in reason


@pytest.mark.parametrize("label", ["cls", "json", "txt"])
def test_labels_are_read_from_the_files_next_to_the_images(
    photos: Path, tmp_path: Path, label: str
) -> None:
    pattern = write_shards(photos, tmp_path / "shards", label=label)

    source = open_splits(data_config(pattern, source="webdataset"))["train"]

    names = sorted(folder.name for folder in (photos / "train").iterdir())
    assert source.classes == (names if label == "txt" else ["0", "1", "2"])
    assert source.labels.bincount().tolist() == [16, 16, 16]


def test_the_class_file_counts_where_there_is_a_caption_too(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "captioned.tar", "w") as shard:
        for i, file in enumerate(sorted(photos.glob("train/*/*.webp"))):
            for extension, text in (("cls", str(i // 16)), ("txt", f"image number {i // 2}")):
                (tmp_path / f"{i}.{extension}").write_text(text)
            for each in (tmp_path / f"{i}.cls", file, tmp_path / f"{i}.txt"):
                shard.add(each, f"{i}{each.suffix}")

    config = data_config(tmp_path / "captioned.tar", source="webdataset", holdout=0)
    source = open_splits(config)["train"]

    assert source.classes == ["0", "1", "2"]
    assert source.labels.bincount().tolist() == [16, 16, 16]


def test_captions_are_no_labels(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "captioned.tar", "w") as shard:
        for i, file in enumerate(sorted(photos.glob("train/*/*.webp"))):
            caption = tmp_path / f"{i}.txt"
            caption.write_text(f"image number {i}")
            shard.add(file, f"{i}.webp")
            shard.add(caption, f"{i}.txt")

    source = open_splits(data_config(tmp_path / "captioned.tar", source="webdataset", holdout=0))[
        "train"
    ]

    assert len(source) == 48
    assert source.classes == []
    assert not source.labeled


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_every_name_of_the_validation_split_means_it(
    photos: Path, tmp_path: Path, name: str
) -> None:
    write_shards(photos, tmp_path / "shards")
    for file in (tmp_path / "shards").glob("test-*.tar"):
        file.rename(file.with_name(file.name.replace("test", name)))

    splits = open_splits(data_config(tmp_path / "shards", source="webdataset"))

    assert {split: len(source) for split, source in splits.items()} == {"train": 48, "val": 18}


def test_where_all_shards_are_of_one_split_a_share_is_held_out(
    photos: Path, tmp_path: Path
) -> None:
    write_shards(photos, tmp_path / "shards")

    splits = open_splits(
        data_config(tmp_path / "shards/train-*.tar", source="webdataset", holdout=0.2)
    )

    assert set(splits) == {"train", "holdout"}
    assert len(splits["train"]) + len(splits["holdout"]) == 48


def test_a_shard_is_indexed_once_and_again_when_it_has_changed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    config = data_config(tmp_path / "shards", source="webdataset")
    write_shards(photos, tmp_path / "shards")
    first = open_splits(config)
    opened: list[str] = []
    whole = tarfile.open
    monkeypatch.setattr(
        tarfile, "open", lambda name, *a, **k: opened.append(str(name)) or whole(name, *a, **k)
    )

    again = open_splits(config)

    assert opened == []
    assert again["train"].fingerprint == first["train"].fingerprint
    shutil.copy(tmp_path / "shards/train-002.tar", tmp_path / "shards/train-000.tar")
    assert len(open_splits(config)["train"]) == 36
    assert len(opened) == 1


def test_a_missing_shard_is_an_error_that_names_it(photos: Path, tmp_path: Path) -> None:
    write_shards(photos, tmp_path / "shards")

    with pytest.raises(DataError, match=r"2 of 5 shards are missing, the first is .*train-003.tar"):
        open_splits(data_config(tmp_path / "shards/train-{000..004}.tar", source="webdataset"))


def test_a_recipe_without_shards_says_what_they_look_like() -> None:
    with pytest.raises(ValidationError, match=r"needs data.path, such as shards/train-\{000"):
        DataConfig(source="webdataset")


@pytest.mark.parametrize("damage", ["cut off", "no tar at all"])
def test_a_damaged_shard_is_an_error_that_names_it(
    photos: Path, tmp_path: Path, damage: str
) -> None:
    write_shards(photos, tmp_path / "shards")
    shard = tmp_path / "shards/train-001.tar"
    shard.write_bytes(shard.read_bytes()[:30_000] if damage == "cut off" else b"x" * 30_000)

    with pytest.raises(DataError, match="train-001.tar' cannot be read"):
        open_splits(data_config(tmp_path / "shards", source="webdataset"))


def test_a_samples_image_is_distinguished_from_its_depth_map(photos: Path, tmp_path: Path) -> None:
    file = next((photos / "train").rglob("*.webp"))
    with tarfile.open(tmp_path / "train-000.tar", "w") as shard:
        for i in range(2):
            for name, content in (
                (f"{i}.depth.png", b"no image"),
                (f"{i}.webp", file.read_bytes()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))

    splits = open_splits(data_config(tmp_path / "train-000.tar", source="webdataset", holdout=0))

    assert len(splits["train"]) == 2
    assert not splits["train"].skipped


def write_tar(file: Path, names: list[str]) -> Path:
    """A shard of small images under these names; other members hold a label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "PNG")
    with tarfile.open(file, "w", encoding="utf-8", errors="surrogateescape") as shard:
        for name in names:
            content = b"cat" if name.lower().endswith("cls") else pixels.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return file


def shards(path: Path | str) -> dict[str, ImageSource]:
    return open_splits(data_config(path, source="webdataset", holdout=0))


def test_images_that_share_a_sample_by_webdatasets_rule_are_counted(tmp_path: Path) -> None:
    names = [f"cam{c}.{i:04d}.jpg" for c in range(2) for i in range(5)]

    source = shards(write_tar(tmp_path / "s.tar", names))["train"]

    assert len(source) == 2
    assert "8 of 10 images in the shards are skipped" in source.remarks[0]
    assert "shares its sample name" in source.remarks[0]
    assert "such as s.tar/cam0.0001.jpg" in source.remarks[0]
    assert len(source.skipped) == 8


def test_folders_of_members_may_have_dots_and_suffixes_any_case(tmp_path: Path) -> None:
    names = ["v1.2/a.JPG", "v1.2/a.CLS", "v1.2/b.jfif", "x/.hidden.png"]

    source = shards(write_tar(tmp_path / "s.tar", names))["train"]

    assert source.names == ["s.tar/v1.2/a.JPG", "s.tar/v1.2/b.jfif"]
    assert source.remarks == []


def test_members_of_formats_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    source = shards(write_tar(tmp_path / "s.tar", ["a.png", "b.heic"]))["train"]

    assert "1 of 2 images in the shards are skipped: .heic files" in source.remarks[0]


def test_member_names_that_are_not_utf8_are_shown_readably(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "b.png"]

    source = shards(write_tar(tmp_path / "s.tar", names))["train"]

    assert source.names == [r"s.tar/caf\xe9.png", "s.tar/b.png"]


@pytest.mark.parametrize("folder", ["a[12]", "a{1,2}", "a*", "what?"])
@pytest.mark.parametrize("pattern", ["", "s[1].tar", "s*.tar", "{s[1],t}.tar"])
def test_paths_that_exist_are_no_patterns(tmp_path: Path, folder: str, pattern: str) -> None:
    for name in ("s[1].tar", "t.tar"):
        write_tar(tmp_path / folder / name, ["a.png", "b.png"])
    write_tar(tmp_path / "a1" / "s1.tar", ["other.png"])

    source = shards(tmp_path / folder / pattern)["train"]

    assert len(source) == (4 if pattern in ("", "{s[1],t}.tar") else 2)
    assert not any("other" in name for name in source.names)


@pytest.mark.parametrize("names", [("Training-0", "Testing-0"), ("train/0", "Dev/0")])
def test_splits_of_shards_are_found_by_any_spelling(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_tar(tmp_path / f"{name}.tar", ["a.png", "b.png"])

    splits = shards(tmp_path)

    assert splits.keys() == {"train", "val" if "Dev" in names[1] else "test"}


def sparse_member(name: str, size: int) -> bytes:
    """A member in GNU's old format that claims `size` bytes and holds none."""
    header = bytearray(512)
    header[: len(name)] = name.encode()
    for place, text in ((100, b"0000644\0"), (124, b"00000000000\0"), (136, b"00000000000\0")):
        header[place : place + len(text)] = text
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[257:265] = b"ustar  \0"
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_sparse_members_that_claim_gigabytes_are_not_read(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "s.tar", ["a.png", "b.png"])
    claims = [sparse_member(name, 8**11 - 1) for name in ("a.cls", "c.png", "d.json")]
    file.write_bytes(b"".join(claims) + file.read_bytes())

    source = shards(file)["train"]

    assert source.names == ["s.tar/a.png", "s.tar/b.png"]
    assert [reason for _, reason in source.skipped] == ["the member is sparse or too large"] * 3


def test_a_shard_of_nothing_but_long_names_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 0
    (tmp_path / "s.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) * 20_000)

    with pytest.raises(DataError, match=r"s.tar' cannot be read|hold no image"):
        shards(tmp_path / "s.tar")


@pytest.mark.parametrize("name", ["../../x.png", "/x.png", "a/../../x.png"])
def test_members_named_outside_the_shard_write_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / "side").mkdir(parents=True)
    write_tar(tmp_path / "in" / "side" / "s.tar", [name, "b.png"])
    before = sorted(tmp_path.rglob("*"))

    source = shards(tmp_path / "in" / "side" / "s.tar")["train"]

    assert len(source) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/x.png").exists()


@pytest.mark.parametrize("label", ["[" * 100_000, "9" * 5000, '{"label": ' + "[" * 5000])
def test_labels_that_were_made_to_harm_are_no_labels(tmp_path: Path, label: str) -> None:
    file = write_tar(tmp_path / "s.tar", ["a.png", "b.png"])
    with tarfile.open(file, "a") as shard:
        member = tarfile.TarInfo("a.json")
        member.size = len(label)
        shard.addfile(member, io.BytesIO(label.encode()))

    source = shards(file)["train"]

    assert len(source) == 2
    assert source.classes == []
