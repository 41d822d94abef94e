"""Which partitions this replica works on: an even share of them, those it has before others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from spearhead.lease import Lease
from spearhead.volume import Volume


class Ownership:
    """Takes free or dead workers' partitions up to this worker's share, and gives back what is above it."""

    def __init__(self, volume: Volume, partitions: int, worker: str) -> None:
        self._worker = worker
        folder = volume.control / "owners"
        self._leases = [Lease(volume.files, folder / f"p{partition:02d}", worker) for partition in range(partitions)]

    def balance(self, replicas: Collection[str], alive: Collection[str]) -> tuple[set[int], set[int]]:
        """What is ours now, and what of it to give back (``release``).

        ``replicas``: names of the live prep workers; ``alive``: of all live workers. Raises OSError.
        """
        owners = {partition: lease.owner() for partition, lease in enumerate(self._leases)}
        share = fair_shares(owners, {*replicas, self._worker})[self._worker]
        ours = {partition for partition, owner in owners.items() if owner == self._worker}
        for partition, owner in owners.items():
            free = owner not in alive and partition not in ours
            if free and len(ours) < share and self._leases[partition].take(alive):
                ours.add(partition)
        return ours, set(sorted(ours)[share:])

    def held(self, partition: int) -> bool:
        return self._leases[partition].held()

    def release(self, partition: int) -> None:
        self._leases[partition].release()


def fair_shares(owners: Mapping[int, str | None], replicas: Collection[str]) -> dict[str, int]:
    """How many partitions each replica should own; the odd ones go to those that own most, so that few move."""
    owned = {replica: sum(owner == replica for owner in owners.values()) for replica in replicas}
    ranked = sorted(replicas, key=lambda replica: (-owned[replica], replica))
    even, odd = divmod(len(owners), len(ranked))
    return {replica: even + (rank < odd) for rank, replica in enumerate(ranked)}
