"""Your own model, data, loss and metric: three clinics predict the course of diabetes from a CSV that none shares.

python examples/own_model/regression.py [ROUNDS]
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import p2pfl

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30

rows = pd.read_csv(Path(__file__).with_name("diabetes.csv")).sample(frac=1, random_state=0)
rows["sex"] = (rows["sex"] == "a").astype(float)
features = rows.drop(columns="progression")
features = (features - features.mean()) / features.std()
x = torch.tensor(features.to_numpy(), dtype=torch.float32)
y = torch.tensor(rows["progression"].to_numpy(), dtype=torch.float32).view(-1, 1)
test = (x[-82:], y[-82:])


class Network(nn.Module):
    """Any module will do; this one learns around the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 150 + 50 * self.layers(x)


clinics = p2pfl.LocalNetwork(topology="complete", epochs=2, batch_size=16)
for index, name in enumerate(["north", "south", "west"]):
    own = slice(120 * index, 120 * (index + 1))
    clinics.add(
        name,
        Network(),
        (x[own], y[own]),
        test,
        loss=nn.SmoothL1Loss(beta=20),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.003),
        metrics={"mae": nn.functional.l1_loss},
    )

results = clinics.run(rounds=rounds)

guess = float((test[1] - y[:-82].mean()).abs().mean())
print(f"mean absolute error of guessing the mean: {guess:.1f}")
for name, result in results.items():
    print(f"{name}: {result.metrics['mae']:.1f}")
