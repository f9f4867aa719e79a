"""Fetch published data sets: `python -m cot_jax.prepare_data svamp cqa --root DIR`

SVAMP, CQA, ANLI and e-SNLI with PaLM's outputs come from the archive that the authors of Distilling
Step-by-Step publish with their code; ASDiv comes from its own authors. Downloads are verified before they
are moved into place. Data sets already in place are verified and left alone.
"""

import argparse
import hashlib
import http.client
import json
import re
import shutil
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

from cot_jax.data import glue
from cot_jax.data.tasks import DATA_SETS, count
from cot_jax.errors import UserError, argument_parser, command, printable, writing
from cot_jax.files import local

ARCHIVE_URL = "https://github.com/google-research/distilling-step-by-step/raw/main/datasets.zip"
ASDIV_URL = "https://raw.githubusercontent.com/chaochun/nlu-asdiv-dataset/master/dataset"
ASDIV_SHA256 = {
    "ASDiv.xml": "ef8904068482919ac48c8eeaaf6df344b8a308ba66d048c2d4d87eab82dc4929",
    "nfolds/asdiv-w/fold4.txt": "e5e89a52d9d53ad9cd35587e6c41c6c3d3bf2ef1fdeb01f60c19639f193ca558",
}
MAX_BYTES = 2 << 30  # of a download, and unpacked: several times the size of the published files

# Of each split's teacher outputs. Of e-SNLI's training set we had a part only.
OUTPUTS_SHA256 = {
    "svamp": {
        "train": "7c232dcce9cb084d925e9898e8a05d3688e525a85c251029218b956dc2e5b736",
        "test": "6b84580ce2ff355aef1df3776fcee01a2a0a0fd541a5db9bb3efae01eca15c20",
    },
    "cqa": {
        "train": "afd587fbb06492d94e762ffa312ee39b33b2b2caed448eb15403ec41c6b219b4",
        "test": "a368397cdbb78af3dee3f856fb1dc7b1641f031381df09b8e190c3d562a9336a",
    },
    "anli1": {
        "train": "45cff54640dc0f8d6d2afcaf4a814c99c6b0fe53b648dc4da55ef9f00bc1fd35",
        "valid": "c3531a9b58539cf30e5ce0f3ee0e8184ec99cf63adedcdaff74b5c7ca350a785",
        "test": "9f3ea4f4519b5e88dee52ba9549dda0f5dd228919f757046682a719ce704b6a4",
    },
    "esnli": {
        "valid": "575b90019e7d88c9ae3a3a62d41941714367e479c347c7cba82598f8a176865a",
        "test": "58cfcdadf9ebe22a3bc79265350c88747a1ae9299885a443ce98114c95deda58",
    },
}

# (examples, rationales, teacher labels, correct ones) by the released parser, counted on the published files.
# None: not counted. Of ANLI's training set we had the teacher's outputs but not the gold labels, of e-SNLI's
# only a part.
KNOWN: dict[str, dict[str, tuple[int | None, ...]]] = {
    "svamp": {"train": (800, 789, 787, 588), "test": (200, 198, 198, 148)},
    "cqa": {"train": (9741, 9741, 9738, 7234), "test": (1221, 1221, 1221, 943)},
    "anli1": {
        "train": (16946, 16824, 16823, None),
        "valid": (1000, 991, 991, 668),
        "test": (1000, 990, 990, 656),
    },
    "esnli": {
        "train": (549367, None, None, None),
        "valid": (9842, 9842, 9838, 7201),
        "test": (9824, 9824, 9824, 7171),
    },
    "asdiv": {"train": (1607, 0, 0, 0), "test": (486, 0, 0, 0)},
}


def prepare(names: Sequence[str], root: Path, url: str) -> None:
    """Fetches the missing data sets to `root`/NAME, all of them or none.

    Raises:
      UserError: a download fails, or new or existing files are not the published data.
    """
    missing = [name for name in names if not (root / name).exists()]
    for name in names:
        if name not in missing:
            try:
                print(f"{root / name} exists already: {verify(name, root)}")
            except UserError as error:
                raise UserError(
                    f"{root / name} exists, but not as published ({error}): move it away"
                ) from None
    if not missing:
        return
    root.mkdir(parents=True, exist_ok=True)
    # Inside `root`, so that moving is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=root, prefix=".prepare_data-") as folder:
        staged = Path(folder)
        if archived := [name for name in missing if name != "asdiv"]:
            download(url, staged / "datasets.zip")
            unpack(staged / "datasets.zip", archived, staged)
        if "asdiv" in missing:
            make_asdiv(staged)
        try:
            verified = {name: verify(name, staged) for name in missing}
        except UserError as error:
            # The temporary folder will be gone when the message is read.
            reason = str(error).replace(f"{staged}/", "")
            raise UserError(f"the download is not the published data ({reason}): nothing was kept") from None
        for name, counted in verified.items():
            (staged / name).rename(root / name)
            print(f"{root / name}: {counted}")


def verify(name: str, root: Path) -> str:
    """Compares a data set with `KNOWN` and `OUTPUTS_SHA256`; returns its counts of examples as text.

    Raises:
      UserError: it is incomplete or different.
    """
    data, sizes = DATA_SETS[name], []
    for split, known in KNOWN[name].items():
        found = count(data.read(split, root, "reference"), data.by_value)
        for what, value, expected in zip(found._fields, found, known, strict=True):
            if expected is not None and value != expected:
                raise UserError(f"{name} {split} has {value:,} {what.replace('_', ' ')}, not {expected:,}")
        sizes.append(f"{split} {found.examples:,}")
    for split, digest in OUTPUTS_SHA256.get(name, {}).items():
        if outputs_sha256(root / name / "llm", split) != digest:
            raise UserError(f"{name}/llm/{split}_CoT_*.json are unknown outputs: sha256 is not {digest}")
    return ", ".join(sizes)


def outputs_sha256(directory: Path, split: str) -> str:
    """Returns the digest, in hexadecimal, of names and contents of a split's teacher outputs."""
    outputs = hashlib.sha256()
    for path in sorted(directory.glob(f"{split}_CoT_*.json")):
        outputs.update(path.name.encode() + path.read_bytes())
    return outputs.hexdigest()


def download(url: str, path: Path) -> None:
    """Downloads `url` to `path`, with a progress bar on a terminal and a line per tenth elsewhere."""
    terminal = sys.stderr.isatty()
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, disable=not terminal) as bar:
                while block := response.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
                    before, done = done, done + len(block)
                    if done > MAX_BYTES:
                        raise UserError(f"{url} is not the published file: over {MAX_BYTES:,} bytes")
                    if size and not terminal and 10 * done // size > 10 * before // size:
                        line = f"{printable(url)}: {done / 1e6:.1f} of {size / 1e6:.1f} MB"
                        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot fetch {url} ({error}): without a network, copy the file and pass --url file:///PATH"
        ) from None
    if done < size:
        raise UserError(f"{url}: the connection ended after {done:,} of {size:,} bytes: try again")


def unpack(archive: Path, names: Sequence[str], into: Path) -> None:
    """Unpacks the files of the data sets `names`, and nothing else, to `into`/NAME."""
    file_of = re.compile(
        rf"(?:.*/)?((?:{'|'.join(names)})/(?:\w+_(?:train|valid|test)|SVAMP|llm/\w+_CoT_\d+)\.json)"
    )
    try:
        with zipfile.ZipFile(archive) as entries:
            wanted: dict[str, zipfile.ZipInfo] = {}
            for entry in entries.infolist():
                found = file_of.fullmatch(entry.filename)
                if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
                    raise UserError(f"this is not the authors' archive: it has an entry {entry.filename!r}")
                if found and wanted.setdefault(found[1], entry) is not entry:
                    raise UserError(f"this is not the authors' archive: it has {found[1]} twice")
            for name in names:
                for split in DATA_SETS[name].splits:
                    if (path := f"{name}/{name}_{split}.json") not in wanted:
                        raise UserError(f"this is not the authors' archive: it has no {path}")
            if sum(entry.file_size for entry in wanted.values()) > MAX_BYTES:
                raise UserError(f"this is not the authors' archive: over {MAX_BYTES:,} bytes unpacked")
            for target, entry in wanted.items():
                (into / target).parent.mkdir(parents=True, exist_ok=True)
                with entries.open(entry) as source, (into / target).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (UserError, OSError):
        raise
    except Exception as error:  # from zipfile, struct and the decompressors
        raise UserError(f"the download is not a valid zip archive ({error}): try again") from None


def make_asdiv(into: Path) -> None:
    """Writes ASDiv in the layout of the released loader; the authors' fold 4 is the test set."""
    for name, digest in ASDIV_SHA256.items():
        path = into / Path(name).name
        download(f"{ASDIV_URL}/{name}", path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(f"{ASDIV_URL}/{name} is not the published file: its sha256 is not {digest}")
    test_ids = set((into / "fold4.txt").read_text().split())
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for problem in ElementTree.parse(into / "ASDiv.xml").iter("Problem"):
        row = {key: problem.findtext(key) for key in ("Body", "Question", "Formula", "Answer")}
        rows["test" if problem.get("ID") in test_ids else "train"].append(json.dumps(row) + "\n")
    (into / "asdiv").mkdir()
    for split, lines in rows.items():
        DATA_SETS["asdiv"].path(split, into).write_text("".join(lines))


def _name(text: str) -> str:
    """Returns the name of a data set; raises ArgumentTypeError for one that is not fetched here."""
    data = DATA_SETS.get(text) or glue.TASKS.get(text)
    if data and data.source:
        raise argparse.ArgumentTypeError(f"{text} is not fetched here: get it from {data.source}")
    return text


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    parser = argument_parser("prepare_data", __doc__)
    add = parser.add_argument
    add("names", nargs="+", type=_name, choices=KNOWN, metavar="NAME", help=", ".join(KNOWN))
    add("--root", type=local, required=True, help="folder to write the data sets to")
    add("--url", default=ARCHIVE_URL, help="the authors' archive; file:///PATH for a local copy")
    flags = parser.parse_args(argv)
    with writing(flags.root):
        prepare(list(dict.fromkeys(flags.names)), flags.root, flags.url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
