"""Every reproduction by name: what it shows, what the paper says of it, and how long it takes.

This module imports nothing but the standard library: `ctflow reproduce --list` reads it alone.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5); numbers of its plots are read off them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["REPRODUCTIONS", "Reproduction", "published"]


@dataclass(frozen=True)
class Reproduction:
    """One script.

    Args:
        name: Its file's, without the ending.
        of: What it reproduces; "beyond the paper" where the paper has nothing like it.
        shows: What it shows, in one line.
        claim: What the paper says (or, beyond it, those who are followed), in our words.
        minutes: Of one processor, by preset: measured beside other work, or scaled from a shorter
            run; the first compilation of a program comes on top.
        aliases: Other names.
        published: The paper's numbers, by the names of our bands.
        alone: Whether it measures times that other work beside it would spoil.
    """

    name: str
    of: str
    shows: str
    claim: str
    minutes: Mapping[str, float]
    aliases: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    alone: bool = False


_BEYOND = "beyond the paper"

REPRODUCTIONS = (
    Reproduction(
        "figure_1",
        "Figure 1",
        "a residual network jumps, an ODE is evaluated where it needs to be",
        "A residual network moves its state in whole layers; an ODE network has a smooth path,"
        " which the solver evaluates more often where the field asks for it. Paths of the ODE"
        " never cross.",
        {"quick": 0.1, "full": 0.1},
        ("figure1",),
    ),
    Reproduction(
        "figure_2_adjoint",
        "Figure 2",
        "the adjoint state, with its jumps at the observations",
        "Gradients come from a second ODE, solved backwards in time. Where the loss looks at"
        " the state, the adjoint jumps by the loss's derivative there.",
        {"quick": 0.2, "full": 0.5},
        ("figure2", "figure_2"),
    ),
    Reproduction(
        "table_1",
        "Table 1",
        "errors, parameters, memory and time of ODE-Net, RK-Net and residual networks",
        "On MNIST an ODE-Net and a network through Runge-Kutta steps reach about the error of a"
        " residual network. The ODE-Net's memory does not grow with depth, and its time grows"
        " with the evaluations.",
        {"quick": 1.5, "full": 30},
        ("table1",),
        {
            "ResNet-6, error in percent": 0.41,
            "RK-Net, error in percent": 0.47,
            "ODE-Net, error in percent": 0.42,
        },
    ),
    Reproduction(
        "figure_3",
        "Figure 3",
        "error, time and evaluations of a trained ODE-Net by tolerance, and as it learns",
        "Errors stay below the tolerance, time is proportional to evaluations, the backward"
        " pass needs about half of the forward's, and evaluations grow while the network learns.",
        {"quick": 0.7, "full": 9},
        ("figure3",),
        {
            "dopri5: evaluations at 1e-5 over those at 1e-1": 117 / 18,
            "tsit5: evaluations at 1e-5 over those at 1e-1": 117 / 18,
            "evaluations at 1e-3 after the last epoch over the first": 16.4 / 7.3,
        },
    ),
    Reproduction(
        "figure_4_density_matching",
        "Figure 4",
        "continuous and layered planar flows matched to densities, by width and depth",
        "At as many hidden units as a layered flow has layers, a continuous flow generally"
        " reaches a lower divergence from the target.",
        {"quick": 3, "full": 15},
        ("figure4", "figure_4"),
    ),
    Reproduction(
        "figure_5_max_likelihood",
        "Figure 5",
        "flows fitted to two circles and two moons, in stages from noise to data",
        "A continuous flow of 64 units moves noise smoothly to the data and fits both sets; one"
        " of 64 layers passes through shapes that make no sense and has trouble with the moons.",
        {"quick": 1, "full": 5},
        ("figure5", "figure_5"),
    ),
    Reproduction(
        "figure_6_latent_ode",
        "Figure 6",
        "from observations through the latent state to a forecast, drawn from a run",
        "A sketch of the model: a recurrent encoder reads the series backwards, a latent state"
        " is drawn, an ODE carries it to every time, a decoder turns it to predictions.",
        {"quick": 0.5, "full": 2.5},
        ("figure6", "figure_6"),
    ),
    Reproduction(
        "figure_7_poisson",
        "Figure 7",
        "the rate of events as a latent path; and the coal-mining disasters",
        "Times of events are a Poisson process whose rate is a function of the latent path; two"
        " bursts of events give a rate with two bumps, nearly zero between them.",
        {"quick": 0.8, "full": 5},
        ("figure7", "figure_7"),
        {
            "first peak, middle at half height (paper 0.188)": 0.188,
            "second peak, middle at half height (paper 0.733)": 0.733,
        },
    ),
    Reproduction(
        "table_2_spirals",
        "Table 2, Figures 8, 9 and 10",
        "a latent ODE extrapolates spirals seen at odd times, recurrent networks do not",
        "On spirals seen at 30, 50 or 100 random times the latent ODE's error on the next"
        " revolution is lower than a recurrent network's at each, and its latent paths part by"
        " direction.",
        {"quick": 0.9, "full": 25},
        (
            "table2",
            "table_2",
            "figure8",
            "figure_8",
            "figure9",
            "figure_9",
            "figure10",
            "figure_10",
        ),
        {
            "latent ODE, 30/100, median RMSE": 0.1642,
            "latent ODE, 50/100, median RMSE": 0.1502,
            "latent ODE, 100/100, median RMSE": 0.1346,
            "better RNN over latent ODE, 30/100": 0.3937 / 0.1642,
            "better RNN over latent ODE, 50/100": 0.3202 / 0.1502,
            "better RNN over latent ODE, 100/100": 0.1813 / 0.1346,
        },
    ),
    Reproduction(
        "memory",
        "Table 1 (memory)",
        "peak memory by tolerance, and time by size, of every gradient method",
        "The adjoint's memory does not depend on the number of steps; back-propagation's grows"
        " with it.",
        {"quick": 1.6},
        published={"adjoint, largest peak over that of the loosest tolerance": 1.0},
    ),
    Reproduction(
        "adjoint_drift",
        "section 6 (reversibility)",
        "when the adjoint is wrong, and whether it says so",
        "Solving the state backwards may add error where trajectories part from each other; the"
        " paper did not find it to matter in practice.",
        {"quick": 0.7, "full": 2},
    ),
    Reproduction(
        "tolerance",
        "sections 1 and 3 (precision for speed)",
        "one trained ODE-Net at other tolerances",
        "After training, accuracy may be given up for speed by loosening the tolerance, with"
        " the weights untouched.",
        {"quick": 0.3},
    ),
    Reproduction(
        "digits",
        "section 3, on other digits",
        "an ODE-Net learns real digits, and every backend solves and differentiates it",
        "The paper has no number for these digits; what is shown is that every backend and"
        " gradient method agree on the same weights.",
        {"quick": 0.9, "full": 2},
    ),
    Reproduction(
        "backends",
        _BEYOND,
        "the same training under every backend",
        "A backend decides how an equation is solved, not what is learnt: differences between"
        " backends are within those of the seeds.",
        {"quick": 2, "full": 9},
    ),
    Reproduction(
        "training_step",
        _BEYOND,
        "a training step of the paper's ODE-Net beside torchdiffeq's",
        "The paper compares no libraries; the band is ours.",
        {"quick": 2, "full": 4},
        alone=True,
    ),
    Reproduction(
        "spiral_speed",
        _BEYOND,
        "a small network solved beside torchdiffeq",
        "The paper compares no libraries; the band is ours.",
        {"quick": 0.1},
        alone=True,
    ),
    Reproduction(
        "flow_speed",
        _BEYOND,
        "a training step of a flow beside torchdiffeq and zuko",
        "The paper compares no libraries; the band is ours.",
        {"quick": 3.5, "full": 4},
    ),
    Reproduction(
        "latent_ode_speed",
        _BEYOND,
        "a training step of the latent ODE beside torchdiffeq",
        "The paper compares no libraries; the band is ours.",
        {"quick": 1, "full": 5},
        alone=True,
    ),
    Reproduction(
        "device_speed",
        _BEYOND,
        "workloads and training steps on one device, a GPU if there is one",
        "The paper compares no libraries; the bands are ours.",
        {"quick": 0.3, "full": 15, "paper": 8},
        alone=True,
    ),
    Reproduction(
        "detest",
        _BEYOND,
        "error and evaluations on the DETEST problems, beside torchdiffeq and SciPy",
        "Hull, Enright, Fellen and Sedgwick (1972): a method is judged by error and evaluations"
        " on a set of problems, tolerance by tolerance.",
        {"quick": 1.5},
    ),
    Reproduction(
        "augmented",
        _BEYOND,
        "augmented ODE-Nets learn what paths that cannot cross forbid",
        "Dupont et al. (2019): with variables added to the state an ODE-Net learns functions"
        " that it cannot represent without, and needs fewer evaluations.",
        {"quick": 0.4},
    ),
    Reproduction(
        "regularised",
        _BEYOND,
        "RNODE, TayNODE, ERNODE and STEER beside a plain ODE-Net",
        "Finlay et al., Kelly et al. (2020), Pal et al. (2021): penalties on the path keep the"
        " evaluations down at about the same accuracy.",
        {"quick": 1.5},
    ),
    Reproduction(
        "steer",
        _BEYOND,
        "STEER on its authors' stiff problem, and what makes it help",
        "Ghosh et al. (2020): a network trained with random end times fits a stiff equation that"
        " one trained without does not.",
        {"quick": 0.7, "full": 10},
    ),
    Reproduction(
        "mechanics",
        _BEYOND,
        "a Hamiltonian field keeps energy; a second-order one flips signs",
        "Greydanus et al. (2019), Norcliffe et al. (2020): fields with the structure of"
        " mechanics keep what mechanics keeps.",
        {"quick": 0.4},
    ),
    Reproduction(
        "toy_densities",
        _BEYOND,
        "free-form, planar, matched and spline flows on toy data",
        "Grathwohl et al. (2019), Lipman et al. (2023): free-form fields fit harder sets, and"
        " flow matching trains them without solving.",
        {"quick": 2, "full": 20},
    ),
    Reproduction(
        "digits_density",
        _BEYOND,
        "digits in 64 dimensions, in bits per dimension",
        "Grathwohl et al. (2019), Finlay et al. (2020), Onken et al. (2021): continuous flows"
        " by maximum likelihood work in more than two dimensions.",
        {"quick": 1.5, "full": 16},
    ),
    Reproduction(
        "flow_animation",
        _BEYOND,
        "a flow in time, as a moving picture",
        "A flow's density is known at every time on the way, not at its end alone.",
        {"quick": 0.8, "full": 9},
    ),
    Reproduction(
        "irregular_series",
        _BEYOND,
        "latent ODEs on real series seen at a tenth to a half of their times",
        "Rubanova et al. (2019): latent ODEs with an ODE in the encoder predict irregular"
        " series between and after their observations.",
        {"quick": 1.3},
    ),
    Reproduction(
        "latent_sde",
        _BEYOND,
        "a latent SDE beside the exact answer",
        "Li et al. (2020): a latent SDE's bound is the path's divergence from its prior; here"
        " the exact posterior is known.",
        {"quick": 0.4, "full": 12},
    ),
    Reproduction(
        "stochastic_lorenz",
        _BEYOND,
        "a latent SDE on the stochastic Lorenz attractor, with bands of doubt",
        "Li et al. (2020): a latent SDE learns the attractor from noisy series.",
        {"quick": 1, "full": 4},
    ),
    Reproduction(
        "neuron_firing",
        _BEYOND,
        "firing of a neuron as Poisson processes with a latent path each",
        "The paper's Poisson likelihood, with one latent state a sequence, on data that the"
        " user has.",
        {"quick": 2, "full": 6},
    ),
    Reproduction(
        "bouncing_ball",
        _BEYOND,
        "gravity, restitution and floor from the times of bounces alone",
        "Chen, Amos, Nickel (2021): times of events have gradients, so that what decides an event"
        " can be learnt from them.",
        {"quick": 0.5, "full": 1},
    ),
    Reproduction(
        "stiff",
        _BEYOND,
        "Rodas5P beside SciPy's Radau on stiff problems, and its gradients",
        "Steinebach (2023): a Rosenbrock method of order 5 takes about as few steps on stiff"
        " problems as implicit Runge-Kutta methods, without an iteration.",
        {"quick": 3, "full": 2.5},
    ),
    Reproduction(
        "scaling",
        _BEYOND,
        "a training step on one process and on two, and a model of many",
        "Li et al. (2020), PyTorch Distributed: averaging gradients by a ring costs a latency and"
        " a rate, which says how far more processes help.",
        {"quick": 3},
        alone=True,
    ),
)


def published(name: str) -> Mapping[str, float]:
    """The paper's numbers for one reproduction, by the names of its bands."""
    return next(each.published for each in REPRODUCTIONS if each.name == name)
