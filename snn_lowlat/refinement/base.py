"""What every refinement is: a correction made by running the spiking network beside the original one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from snn_lowlat import checks
from snn_lowlat.plan import SitePlan
from snn_lowlat.registry import Registered

__all__ = ["Refinement", "check_counts"]


@dataclass(frozen=True, eq=False)
class Refinement(Registered):
    """A correction that can follow any strategy; its options are its dataclass fields.

    It changes biases, thresholds or potentials, never the graph.

    Where several processes convert together (``torch.distributed``), each calls it with its share of the data, and all
    go on with what the first one's returns. Means over the data of all of them come from
    :func:`snn_lowlat.refinement.walk.channel_mean`; a refinement that uses other statistics reduces them itself.
    """

    @abstractmethod
    def refine(
        self,
        graph: fx.GraphModule,
        plan: dict[str, SitePlan],
        batches: Iterable[object],
        timesteps: int,
        reference: fx.GraphModule | None = None,
    ) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Return the corrected network and plan.

        Parameters
        ----------
        graph : GraphModule
            The network in normal form. It is the caller's: a refinement that changes weights does so on a copy.
        plan : dict of str to SitePlan
            What each site becomes.
        batches : iterable
            Calibration batches.
        timesteps : int
            The window planned for, in steps.
        reference : GraphModule, optional
            The original network, where it is another than ``graph``: that with the weights from before they were
            rounded. A refinement that has no such parameter is not given it.
        """


def check_counts(refinement: Refinement, *options: str) -> None:
    """Check that options are whole numbers of at least 1; ``ValueError`` names the one that is not."""
    for option in options:
        checks.count(f"{refinement.name}: {option}", getattr(refinement, option))
