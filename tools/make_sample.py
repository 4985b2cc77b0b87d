"""Make the embedded sample, `vlmeter/data/sample/`, out of photographs in scikit-image and scikit-learn.

    pip install scikit-image==0.26.0 scikit-learn==1.9.1
    python tools/make_sample.py [FOLDER]

Both packages carry the pictures in their wheels, so nothing is downloaded; a source whose sha256 is not the
one below is refused. Only pictures whose licence the package itself states are used. A JPEG source that is
taken whole is copied byte for byte; a PNG is stored as JPEG (quality 90), which keeps the sample below 3 MB;
two pictures are cropped, to have upright and wide ones among them. The questions and answers were written
while looking at the stored pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.resources
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmeter.common.files import write_atomically

SKIMAGE = ("skimage", "data")
SKLEARN = ("sklearn", "datasets/images")


@dataclass(frozen=True)
class Question:
    """A question and its ten answers: each answer and how often it is given, the most frequent first."""

    question: str
    question_type: str
    answer_type: str
    answers: dict[str, int]


@dataclass(frozen=True)
class Photograph:
    """One picture, where it comes from, and what is asked about it."""

    name: str
    package: tuple[str, str]
    source: str
    sha256: str
    shows: str
    author: str
    licence: str
    origin: str
    questions: tuple[Question, ...]
    crop: tuple[int, int, int, int] | None = None  # left, upper, right, lower, in px


def yes_no(question: str, question_type: str, answer: str) -> Question:
    """Make a question on whose answer all agree."""
    return Question(question, question_type, "yes/no", {answer: 10})


PHOTOGRAPHS = (
    Photograph(
        name="astronaut",
        package=SKIMAGE,
        source="astronaut.png",
        sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        shows="Eileen Collins, astronaut",
        author="NASA",
        licence="public domain, no known copyright restrictions",
        origin="NASA Great Images database, https://flic.kr/p/r9qvLn",
        questions=(
            Question("What color is the woman's suit?", "what color is the", "other", {"orange": 10}),
            yes_no("Is the woman smiling?", "is the woman", "yes"),
            Question(
                "What is the model behind the woman?",
                "what is the",
                "other",
                {"space shuttle": 7, "shuttle": 2, "spaceship": 1},
            ),
        ),
    ),
    Photograph(
        name="camera",
        package=SKIMAGE,
        source="camera.png",
        sha256="b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        shows="a man with a camera on a tripod",
        author="Lav Varshney",
        licence="CC0",
        origin="https://github.com/scikit-image/scikit-image/issues/3927",
        questions=(
            Question("How many legs does the tripod have?", "how many", "number", {"3": 10}),
            yes_no("Is the man wearing gloves?", "is the man", "yes"),
            Question(
                "What is the man looking through?",
                "what is the man",
                "other",
                {"camera": 9, "viewfinder": 1},
            ),
        ),
    ),
    Photograph(
        name="chelsea",
        package=SKIMAGE,
        source="chelsea.png",
        sha256="596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        shows="Chelsea the cat",
        author="Stefan van der Walt",
        licence="CC0",
        origin="the photographer",
        questions=(
            Question("What animal is this?", "what animal is", "other", {"cat": 10}),
            Question("What color are the cat's eyes?", "what color are the", "other", {"green": 9, "yellow": 1}),
        ),
    ),
    Photograph(
        name="china",
        package=SKLEARN,
        source="china.jpg",
        sha256="8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        shows="a tower above a lake",
        author="danielbuechele",
        licence="CC BY 2.0",
        origin="https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/",
        crop=(0, 20, 640, 270),
        questions=(
            yes_no("Is there water behind the tower?", "is there", "yes"),
            Question(
                "What color are the roof tiles?",
                "what color are the",
                "other",
                {"orange": 8, "orange and green": 2},
            ),
        ),
    ),
    Photograph(
        name="coffee",
        package=SKIMAGE,
        source="coffee.png",
        sha256="cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        shows="a cup of coffee",
        author="Rachel Michetti, courtesy of Pikolo Espresso Bar",
        licence="CC0",
        origin="the photographer",
        questions=(
            Question("What is lying on the saucer next to the cup?", "what is", "other", {"spoon": 10}),
            yes_no("Is the cup full to the brim?", "is the", "no"),
            Question("What is the table made of?", "what is the", "other", {"wood": 10}),
        ),
    ),
    Photograph(
        name="coins",
        package=SKIMAGE,
        source="coins.png",
        sha256="f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        shows="Greek coins from Pompeii",
        author="Brooklyn Museum",
        licence="no known copyright restrictions",
        origin="https://www.brooklynmuseum.org/opencollection/archives/image/51611",
        questions=(
            Question("How many coins are there?", "how many", "number", {"24": 10}),
            Question("How many rows of coins are there?", "how many", "number", {"4": 10}),
        ),
    ),
    Photograph(
        name="flower",
        package=SKLEARN,
        source="flower.jpg",
        sha256="a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        shows="a dahlia",
        author="vultilion",
        licence="CC BY 2.0",
        origin="https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/",
        questions=(
            Question("What color is the flower?", "what color is the", "other", {"orange": 9, "peach": 1}),
            yes_no("Is the background in focus?", "is the", "no"),
        ),
    ),
    Photograph(
        name="grass",
        package=SKIMAGE,
        source="grass.png",
        sha256="b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        shows="a lawn",
        author="linolafett",
        licence="CC0",
        origin="https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        questions=(
            Question("What covers the ground?", "what", "other", {"grass": 10}),
            yes_no("Is this picture in color?", "is this", "no"),
        ),
    ),
    Photograph(
        name="hubble",
        package=SKIMAGE,
        source="hubble_deep_field.jpg",
        sha256="3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        shows="the Hubble eXtreme Deep Field",
        author="NASA",
        licence="public domain",
        origin="http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        questions=(
            Question("What color is most of the background?", "what color is", "other", {"black": 10}),
            Question(
                "What is shown in this picture?",
                "what is",
                "other",
                {"galaxies": 6, "space": 3, "stars": 1},
            ),
        ),
    ),
    Photograph(
        name="ihc",
        package=SKIMAGE,
        source="ihc.png",
        sha256="f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        shows="colonic glands under the microscope, FHL2 protein stained brown",
        author="Center for Microscopy And Molecular Imaging (CMMI)",
        licence="no known copyright restrictions",
        origin="the Center for Microscopy And Molecular Imaging",
        questions=(
            yes_no("Was this picture taken through a microscope?", "was", "yes"),
            Question("What color is the stain on the glands?", "what color is the", "other", {"brown": 10}),
        ),
    ),
    Photograph(
        name="retina",
        package=SKIMAGE,
        source="retina.jpg",
        sha256="38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        shows="the retina of a left eye",
        author="Mikael Häggström",
        licence="CC0 1.0",
        origin="https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        questions=(
            Question("What part of the body is this?", "what", "other", {"eye": 7, "retina": 3}),
            Question("On which side is the bright spot?", "none of the above", "other", {"left": 10}),
        ),
    ),
    Photograph(
        name="rocket",
        package=SKIMAGE,
        source="rocket.jpg",
        sha256="c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        shows="a Falcon 9 with DSCOVR on its launch pad",
        author="SpaceX",
        licence="public domain",
        origin="https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/",
        crop=(190, 0, 440, 427),
        questions=(
            Question("What is standing on the launch pad?", "what is", "other", {"rocket": 10}),
            yes_no("Are the lights on?", "are the", "yes"),
        ),
    ),
)


def source_bytes(photograph: Photograph) -> bytes:
    """Read a picture from the installed package; ends the program if it is not the one that was looked at."""
    package, folder = photograph.package
    data = importlib.resources.files(package).joinpath(folder, photograph.source).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != photograph.sha256:
        raise SystemExit(f"{package}/{folder}/{photograph.source} has sha256 {found}, not {photograph.sha256}")
    return data


def picture(photograph: Photograph) -> bytes:
    """Give the picture as it is stored: RGB, JPEG."""
    data = source_bytes(photograph)
    if photograph.source.endswith(".jpg") and photograph.crop is None:
        return data
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    buffer = io.BytesIO()
    rgb.crop(photograph.crop or (0, 0, *rgb.size)).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def records() -> list[dict[str, object]]:
    """Make the records, in the schema of VQA v2; the image is a file name relative to the records' folder."""
    rows: list[dict[str, object]] = []
    for image_id, photograph in enumerate(PHOTOGRAPHS, start=1):
        for index, question in enumerate(photograph.questions):
            given = [answer for answer, times in question.answers.items() for _ in range(times)]
            if len(given) != 10:
                raise SystemExit(f"{photograph.name}: {question.question} has {len(given)} answers, not 10")
            rows.append(
                {
                    "question_type": question.question_type,
                    "multiple_choice_answer": given[0],
                    "answers": [
                        {
                            "answer": answer,
                            "answer_confidence": "yes" if answer == given[0] else "maybe",
                            "answer_id": answer_id,
                        }
                        for answer_id, answer in enumerate(given, start=1)
                    ],
                    "image_id": image_id,
                    "answer_type": question.answer_type,
                    "question_id": image_id * 1000 + index,
                    "question": question.question,
                    "image": f"{photograph.name}.jpg",
                }
            )
    return rows


def attribution() -> str:
    """Say of each picture who made it, under which licence, and what was changed."""
    lines = [
        "# Where the photographs come from",
        "",
        "Made by `tools/make_sample.py`; edit that instead. Author, licence and origin are as the",
        "package that ships the picture states them: scikit-image in the docstrings of `skimage.data`,",
        "scikit-learn in `sklearn/datasets/images/README.txt`. (That one credits flower.jpg to",
        "danielbuechele in words and to vultilion in both links; the links are followed here.)",
        "",
        "| file | shows | author | licence | origin | taken from | changes |",
        "|---|---|---|---|---|---|---|",
    ]
    projects = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    for photograph in PHOTOGRAPHS:
        if photograph.crop:
            left, upper, right, lower = photograph.crop
            changes = f"cropped to {right - left} x {lower - upper} px at ({left}, {upper}), stored anew as JPEG"
        elif photograph.source.endswith(".jpg"):
            changes = "none"
        else:
            changes = "stored as RGB JPEG"
        project = projects[photograph.package[0]]
        lines.append(
            f"| {photograph.name}.jpg | {photograph.shows} | {photograph.author} | {photograph.licence} "
            f"| {photograph.origin} | {project} {importlib.metadata.version(project)}, {photograph.source} "
            f"| {changes} |"
        )
    lines += [
        "",
        "CC BY 2.0: https://creativecommons.org/licenses/by/2.0/",
        "CC0: https://creativecommons.org/publicdomain/zero/1.0/",
        "",
        "The questions and answers in `records.jsonl` were written for vlmeter in the form of VQA v2",
        "records and are under vlmeter's own licence. They are not taken from VQA v2, and the ten answers",
        "of a question were not collected from ten people.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description="Make the embedded sample.")
    default = Path(__file__).resolve().parent.parent / "vlmeter" / "data" / "sample"
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="default: vlmeter/data/sample")
    folder: Path = parser.parse_args().folder
    for photograph in PHOTOGRAPHS:
        write_atomically(folder / f"{photograph.name}.jpg", picture(photograph))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records()]
    write_atomically(folder / "records.jsonl", "".join(lines).encode())
    write_atomically(folder / "ATTRIBUTION.md", attribution().encode())


if __name__ == "__main__":
    main()
