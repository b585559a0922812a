"""Small sets in the layout of the WILDS releases: real tables, folders and names, made-up images.

Each maker writes NAME_vVERSION below a folder and returns what WILDS makes of it, worked out by
hand: for each split, in order, the files with their labels.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

Expected = dict[str, list[tuple[str, int]]]


def picture(seed: int, size: tuple[int, int] = (20, 16), form: str = "PNG") -> bytes:
    """A picture of its own for every seed; `size` is width and height."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def write_table(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def write_images(folder: Path, expected: Expected, form: str = "PNG", unused: tuple = ()) -> None:
    files = [file for rows in expected.values() for file, _ in rows]
    for seed, file in enumerate([*files, *unused]):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(picture(seed, form=form))


def iwildcam(root: Path) -> Expected:
    folder = root / "iwildcam_v2.0"
    write_table(
        folder / "metadata.csv",
        ",split,location_remapped,location,sequence_remapped,seq_id,y,category_id,datetime,filename,"
        "image_id",
        [
            "0,train,0,287,0,a,24,101,2013-05-28 19:21:57.000,8b31d3be.jpg,8b31d3be",
            "1,val,3,288,1,b,0,0,2013-05-28 19:22:57.000,8cf202be.jpg,8cf202be",
            "2,train,0,287,0,a,181,372,2013-05-28 19:23:57.000,8a87ed1c.jpg,8a87ed1c",
            "3,test,5,290,2,c,10,24,2013-05-28 19:24:57.000,8e1f7fd6.jpg,8e1f7fd6",
            "4,id_val,0,287,3,d,24,101,2013-05-28 19:25:57.000,9f7a2d1e.jpg,9f7a2d1e",
            "5,id_test,0,287,4,e,0,0,2013-05-28 19:26:57.000,a0a1b2c3.jpg,a0a1b2c3",
            "6,test,5,290,2,c,24,101,2013-05-28 19:27:57.000,00112233.jpg,00112233",
        ],
    )
    write_table(
        folder / "categories.csv",
        ",category_id,name,count,y",
        [f"{i},{2 * i},animal {i},1,{i}" for i in range(182)] + ["182,999,never seen,0,99999"],
    )
    expected = {
        "train": [("train/8b31d3be.jpg", 24), ("train/8a87ed1c.jpg", 181)],
        "val": [("train/8cf202be.jpg", 0)],
        "test": [("train/8e1f7fd6.jpg", 10), ("train/00112233.jpg", 24)],
        "id_val": [("train/9f7a2d1e.jpg", 24)],
        "id_test": [("train/a0a1b2c3.jpg", 0)],
    }
    write_images(folder, expected, "JPEG")
    return expected


def camelyon17(root: Path) -> Expected:
    """The hospitals 1 and 2 are val and test whatever the table's split says."""
    folder = root / "camelyon17_v1.0"
    write_table(
        folder / "metadata.csv",
        ",patient,node,x_coord,y_coord,tumor,slide,center,split",
        [
            "0,004,4,3328,21792,1,0,0,0",
            "1,004,4,3200,22272,0,0,0,1",
            "2,020,2,5536,11840,1,10,1,0",
            "3,040,1,96,128,0,20,2,1",
            "4,060,3,2048,4096,0,30,3,0",
            "5,080,0,17,19,1,40,4,1",
            "6,040,1,128,128,1,20,2,0",
            "7,020,2,5568,11840,0,10,1,1",
        ],
    )

    def patch(slide, place):
        return f"patches/{slide}/patch_{slide}_{place}.png"

    expected = {
        "train": [
            (patch("patient_004_node_4", "x_3328_y_21792"), 1),
            (patch("patient_060_node_3", "x_2048_y_4096"), 0),
        ],
        "val": [
            (patch("patient_020_node_2", "x_5536_y_11840"), 1),
            (patch("patient_020_node_2", "x_5568_y_11840"), 0),
        ],
        "test": [
            (patch("patient_040_node_1", "x_96_y_128"), 0),
            (patch("patient_040_node_1", "x_128_y_128"), 1),
        ],
        "id_val": [
            (patch("patient_004_node_4", "x_3200_y_22272"), 0),
            (patch("patient_080_node_0", "x_17_y_19"), 1),
        ],
    }
    write_images(folder, expected)
    return expected


def rxrx1(root: Path) -> Expected:
    """Of the training experiments, the second site of every well is id_test."""
    folder = root / "rxrx1_v1.0"
    write_table(
        folder / "metadata.csv",
        "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id",
        [
            "HEPG2-08_1_B02_1,HEPG2-08_1_B02,HEPG2,test,HEPG2-08,1,B02,1,negative_control,EMPTY,1138",
            "HEPG2-08_1_B02_2,HEPG2-08_1_B02,HEPG2,test,HEPG2-08,1,B02,2,negative_control,EMPTY,1138",
            "HUVEC-01_2_C03_1,HUVEC-01_2_C03,HUVEC,train,HUVEC-01,2,C03,1,treatment,s21721,7",
            "HUVEC-01_2_C03_2,HUVEC-01_2_C03,HUVEC,train,HUVEC-01,2,C03,2,treatment,s21721,7",
            "RPE-05_4_O23_1,RPE-05_4_O23,RPE,val,RPE-05,4,O23,1,positive_control,s15652,1108",
            "RPE-05_4_O23_2,RPE-05_4_O23,RPE,val,RPE-05,4,O23,2,positive_control,s15652,1108",
            "U2OS-01_3_D10_1,U2OS-01_3_D10,U2OS,train,U2OS-01,3,D10,1,treatment,s20894,0",
        ],
    )
    expected = {
        "train": [
            ("images/HUVEC-01/Plate2/C03_s1.png", 7),
            ("images/U2OS-01/Plate3/D10_s1.png", 0),
        ],
        "val": [
            ("images/RPE-05/Plate4/O23_s1.png", 1108),
            ("images/RPE-05/Plate4/O23_s2.png", 1108),
        ],
        "test": [
            ("images/HEPG2-08/Plate1/B02_s1.png", 1138),
            ("images/HEPG2-08/Plate1/B02_s2.png", 1138),
        ],
        "id_test": [("images/HUVEC-01/Plate2/C03_s2.png", 7)],
    }
    write_images(folder, expected)
    return expected


def fmow(root: Path) -> Expected:
    """Years decide, in UTC; the sequestered rows have numbers, but belong to no split."""
    folder = root / "fmow_v1.1"
    rows = [
        ("train", "airport", "2012-12-31T23:59:59Z"),  # 0
        ("seq", "zoo", "2010-01-01T00:00:00Z"),  # 1: nowhere
        ("train", "zoo", "2013-01-01T00:00:00Z"),  # 2: nowhere, too late for train
        ("val", "zoo", "2013-01-01T00:00:00Z"),  # 3: val
        ("val", "barn", "2015-12-31T23:59:59.500Z"),  # 4: val
        ("val", "barn", "2002-05-01T10:20:30Z"),  # 5: id_val
        ("val", "barn", "2016-01-01T00:00:00Z"),  # 6: nowhere, too late for val
        ("test", "dam", "2016-01-01T00:00:00Z"),  # 7: test
        ("test", "dam", "2014-06-01T00:00:00Z"),  # 8: nowhere, between
        ("test", "multi-unit_residential", "2009-06-01T00:00:00Z"),  # 9: id_test
        ("train", "wind_farm", "2004-02-29T12:00:00Z"),  # 10
        ("test", "airport", "2017-07-07T07:07:07+00:00"),  # 11: test
    ]
    write_table(
        folder / "rgb_metadata.csv",
        "split,img_filename,category,country_code,timestamp,lat,lon",
        [
            f'{split},{category}_{i}_rgb.jpg,{category},USA,{timestamp},1.5,"2.5"'
            for i, (split, category, timestamp) in enumerate(rows)
        ],
    )
    write_table(folder / "country_code_mapping.csv", "alpha-3,region", ["USA,Americas"])
    expected = {
        "train": [("images/rgb_img_0.png", 0), ("images/rgb_img_10.png", 60)],
        "val": [("images/rgb_img_3.png", 61), ("images/rgb_img_4.png", 6)],
        "test": [("images/rgb_img_7.png", 12), ("images/rgb_img_11.png", 0)],
        "id_val": [("images/rgb_img_5.png", 6)],
        "id_test": [("images/rgb_img_9.png", 30)],
    }
    write_images(folder, expected, unused=tuple(f"images/rgb_img_{i}.png" for i in (1, 2, 6, 8)))
    return expected


MAKERS = {maker.__name__: maker for maker in (iwildcam, camelyon17, rxrx1, fmow)}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
