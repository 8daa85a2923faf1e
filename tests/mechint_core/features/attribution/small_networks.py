"""Small networks whose attributions are known, for the tests of the attribution techniques."""

import numpy as np
import torch
from torch import nn

from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig
from mechint_core.random import torch_generator


def filled(model, seed=0):
    """Give a model reproducible float64 parameters."""
    draws = torch_generator(seed, "small networks")
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return model


def mlp(n_inputs=10, n_outputs=3, activation=nn.ReLU, seed=0):
    layers = [nn.Linear(n_inputs, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, n_outputs)]
    return filled(nn.Sequential(*layers), seed)


class Stack(nn.Module):
    """Two attention layers over embedded tokens; one row of logits per position."""

    def __init__(self, *, batch_first=True, activation="gelu"):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, activation=activation, batch_first=batch_first)
            for _ in "ab"
        )
        self.unembed = nn.Linear(8, 7)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.unembed(x)


class Relus(nn.Module):
    """relu(relu(x1) - 1 - relu(x2)): captum's BasicModel2."""

    def forward(self, x):
        return torch.relu(torch.relu(x[:, 0]) - 1 - torch.relu(x[:, 1]))


def signed_axes(n_units):
    """A dictionary whose latents are +e_i and -e_i, for vectors beyond 1: what it leaves unexplained is up to 1."""
    rows = np.vstack([np.eye(n_units), -np.eye(n_units)])
    made = SparseAutoencoder(n_units, 2 * n_units, config=SparseAutoencoderConfig(activation="relu")).double()
    with torch.no_grad():
        made.W_enc.copy_(torch.from_numpy(rows))
        made.W_dec.copy_(torch.from_numpy(rows))
        made.b_enc.fill_(0.0)
        made.threshold.fill_(1.0)
    return made


def trained_on_two_inputs():
    """A network that has learned the sign of x0 + x1 among eight inputs, and the inputs it learned from."""
    x = torch.randn(400, 8, generator=torch_generator(0, "inputs"))
    y = (x[:, 0] + x[:, 1] > 0).long()
    model = filled(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))).float()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(200):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model, x.numpy(), y.numpy()
