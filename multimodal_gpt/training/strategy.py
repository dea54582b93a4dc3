"""Several processes as one run: who is who, what they agree on, and who holds which part of the weights.

Every process trains on rows of its own and gradients are averaged, so that a step is the same step on any
number of them: rows belong to steps, not to devices. The first process alone prepares, writes and speaks.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.recipe.schema import TrainRecipe

T = TypeVar("T")

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, or `launch`, tells every process that it starts."""
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_STEP_NUM_TASKS")
"""What srun tells; the last one is missing where a batch script runs without it."""
PATIENCE = timedelta(days=7)
"""How long the others wait while the first one prepares."""


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Args:
        rank: number of this one; the first is 0.
        size: how many there are.
        local: how many of them run on each node.
        sharded: whether each holds a share of the weights (FSDP) instead of all of them (DDP).
        started: whether the others run already; else `launch` is to start them.
    """

    rank: int = 0
    size: int = 1
    local: int = 1
    sharded: bool = False
    started: bool = True

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local

    def __str__(self) -> str:
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.size} processes{nodes}, {'FSDP' if self.sharded else 'DDP'}"


ALONE = Team()


def assemble(train: TrainRecipe, told: Mapping[str, str] = os.environ) -> Team:
    """The team that a recipe asks for, or that torchrun or SLURM have started; `told` is the environment.

    Raises UserError where these two differ, or where one process can't be the whole team.
    """
    kind = train.strategy == "fsdp"
    for names in (TORCHRUN, SLURM):
        if all(name in told for name in names):
            rank, size = int(told[names[0]]), int(told[names[1]])
            local = int(told["LOCAL_WORLD_SIZE"]) if names is TORCHRUN else size // int(told["SLURM_NNODES"])
            team = Team(rank, size, local, kind and size > 1)
            _check_asked("train.devices", train.devices, team.local)
            _check_asked("train.nodes", train.nodes, team.nodes)
            return team
    if train.nodes > 1:
        fix = "start it on every node with torchrun or srun: docs/scaling.md"
        raise UserError(f"{train.nodes} nodes need somebody who starts them", "train.nodes", fix)
    local = train.devices or _every_gpu(train)
    return Team(0, local, local, kind and local > 1, started=local == 1)


def _check_asked(where: str, asked: int, found: int) -> None:
    if asked not in (0, found):
        fix = "leave it away: torchrun and SLURM say it"
        raise UserError(f"{asked} are asked for, {found} were started", where, fix)


def _every_gpu(train: TrainRecipe) -> int:
    """How many processes a strategy without a number means: one for each GPU of this machine."""
    return max(1, torch.cuda.device_count()) if train.strategy != "auto" and train.device != "cpu" else 1


@contextlib.contextmanager
def member(team: Team, accelerator: str) -> Iterator[None]:
    """Take part in a team until the end of the block; only the first process prints meanwhile.

    On GPUs tensors travel by NCCL, what is agreed on by gloo; that half has not been run.
    """
    if team.size == 1:
        yield
        return
    place = _environment(team)
    os.environ.update(MASTER_ADDR=place.main_address, MASTER_PORT=str(place.main_port))
    gpu = torch.device("cuda", place.local_rank()) if accelerator == "cuda" else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    backend = "gloo" if gpu is None else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, rank=team.rank, world_size=team.size, device_id=gpu)
    with contextlib.ExitStack() as silence:
        if team.rank:
            nothing = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            silence.enter_context(contextlib.redirect_stdout(nothing))
            silence.enter_context(contextlib.redirect_stderr(nothing))
        yield
    distributed.destroy_process_group()  # not after an error: the others may be gone


def _environment(team: Team) -> ClusterEnvironment:
    """The same in Lightning's words."""
    if team.size == 1:
        return LightningEnvironment()
    if all(name in os.environ for name in TORCHRUN):
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False)


def trainer_options(team: Team) -> dict[str, Any]:
    """What Lightning's Trainer is to know of a team."""
    place = {"devices": team.local, "num_nodes": team.nodes, "plugins": [_environment(team)]}
    if team.size == 1:
        return place
    strategy = Sharded(team.size) if team.sharded else DDPStrategy(gradient_as_bucket_view=True)
    return {**place, "strategy": strategy}


# What the processes agree on


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def leads() -> bool:
    """Whether this process is the first, or the only one."""
    return not several() or distributed.get_rank() == 0


def total(x: Tensor) -> Tensor:
    """The sum of all processes' `x`, which stays as it is; all must call it."""
    if not several():
        return x
    summed = x.clone()
    distributed.all_reduce(summed)
    return summed


def largest(*numbers: float) -> list[float]:
    """For each number the largest that any process has; all must call it. Never waits for a GPU."""
    if not several():
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values.tolist()


def meet() -> None:
    """Wait until all processes are here."""
    largest(0)


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives, done by the first process alone while the others wait; all must call it.

    A UserError ends them all, and the first one tells it.
    """
    if not several():
        return work()
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    told: list[Any] = [None, None]
    if leads():
        try:
            told[0] = work()
        except UserError as error:
            told[1] = error
    distributed.broadcast_object_list(told, src=0, group=group)
    if told[1] is not None:
        raise shared(told[1])
    distributed.destroy_process_group(group)
    return told[0]


def shared(error: UserError) -> BaseException:
    """What to raise for an error that all processes have alike: the first one tells it, the others leave."""
    return error if leads() else SystemExit(2)


# Who holds which part of the weights


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the weights over the processes, in place: of every block and of the rest, each holds a share."""
    if isinstance(net, FSDPModule):
        return
    blocks = net.get_submodule("blocks")
    for block in blocks.children():
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def settle(net: nn.Module) -> None:
    """Leave each process its share alone, after a forward pass that no backward pass followed."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(x: Tensor) -> Tensor:
    """A tensor whose parts may lie with several processes; all must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _whole_on_cpu(x: Any) -> Any:
    return whole(x.detach()).cpu() if isinstance(x, Tensor) else x


def hollow(net: GPT) -> GPT:
    """A copy without weights, to be filled by `gathered`."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in net.parameters()}
    return copy.deepcopy(net, empty)


def gathered(net: GPT, shape: GPT | None) -> GPT | None:
    """The network with all its weights; all processes must call it.

    `shape` is what `hollow` gave before the weights were spread, None where they never are: then it is `net`
    itself. Else it is a copy on the CPU in the first process, and None in the others.
    """
    if shape is None:
        return net
    weights = {}
    for name, weight in net.state_dict().items():
        full = _whole_on_cpu(weight)
        if leads():
            weights[name] = full
    if not leads():
        return None
    filled = copy.deepcopy(shape)
    filled.load_state_dict(weights, assign=True)
    return filled.eval()


class Sharded(ModelParallelStrategy):
    """FSDP2, its checkpoints written as those of one process: any number of processes can go on from them.

    Lightning's own numbers the optimizer's states by the order of the weights, a plain optimizer by that of
    its groups.
    """

    def __init__(self, size: int) -> None:
        super().__init__(data_parallel_size=size, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether `load_optimizer_state_dict` is to be called."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights, on the CPU."""
        assert self.lightning_module is not None
        return {name: _whole_on_cpu(value) for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """All of the optimizer's state, on the CPU."""
        state = optimizer.state_dict()
        parts = {index: _mapped(part, _whole_on_cpu) for index, part in state["state"].items()}
        return {**state, "state": parts}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """All that was saved; every process reads it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put this process's share of the weights in place, the reverse of `lightning_module_state_dict`."""
        assert self.lightning_module is not None
        now = self.lightning_module.state_dict()
        shares = {name: share(value, now[name]) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(shares, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put this process's share of the optimizer's state in place, the reverse of `optimizer_state`."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            indexes = [i for group in state["param_groups"] for i in group["params"]]
            like = dict(zip(indexes, weights, strict=True))
            parts = {i: _mapped(part, partial(share, like=like[i])) for i, part in state["state"].items()}
            optimizer.load_state_dict({**state, "state": parts})


def _mapped(part: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {key: change(value) for key, value in part.items()}


def share(x: Any, like: Tensor) -> Any:
    """The part of `x` that belongs to this process, laid out as `like`; `x` where `like` is not spread."""
    if not isinstance(x, Tensor) or not isinstance(like, DTensor) or x.shape != like.shape:
        return x
    mesh = like.device_mesh
    return distribute_tensor(x.to(like.device), mesh, like.placements, src_data_rank=None)
