"""The sbatch file that starts Ray inside one allocation, runs a command on it, and stops it.

Not ``ray symmetric-run``: it ends with ``ray stop``, which on a shared node also ends the Ray of other jobs, and it
succeeds when Ray could not start.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from simtool.engines.slurm.options import SlurmOptions
from simtool.engines.slurm.script import Phase, command_line, directive, has_grace, head, setup
from simtool.errors import OptionError

ADDRESS = "{address}"  # the word of a command that stands for the address of the head

_START = """\
# Whoever reaches a Ray without a token can run commands as you. The token is read from a file that only you can read.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH={folder}/ray-"$SLURM_JOB_ID".token
(umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' > "$RAY_AUTH_TOKEN_PATH")

# The head of Ray is the node of this script, which is the first; its address as the last node sees it.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=$(printf '%s\\n' "$nodes" | head -n 1)
last=$(printf '%s\\n' "$nodes" | tail -n 1)
name=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$last" getent ahostsv4 "$name" | sed -n '1s/ .*//p')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$ip:$port"
temporary=/tmp/simtool-ray-"$SLURM_JOB_ID"

command= head= others=
finish() {{
    trap - TERM EXIT
    kill $others $head 2>/dev/null || true
    wait $others $head || true
    rm -rf "$temporary" "$RAY_AUTH_TOKEN_PATH"
}}
trap finish EXIT
trap 'kill -TERM $command 2>/dev/null || exit 143' TERM

srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist="$first" \\
    {ray} start --head --node-ip-address="$ip" --port="$port" \\
    --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$temporary" \\
    --include-dashboard=false --disable-usage-stats --block &
head=$!
until (exec 3<> "/dev/tcp/$ip/$port") 2>/dev/null; do
    kill -0 $head || {{ echo "Ray did not start; its words are above" >&2; exit 1; }}
    sleep 1
done
kill -0 $head  # not a stranger on this port
"""

# A lost node ends its own step only; the others go on, and Ray gives its tasks to them.
_OTHERS = """\
srun --overlap --nodes={others} --ntasks={others} --cpus-per-task="$SLURM_CPUS_PER_TASK" --exclude="$first" \\
    --kill-on-bad-exit=0 --no-kill \\
    {ray} start --address="$RAY_ADDRESS" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$temporary" \\
    --disable-usage-stats --block &
others=$!
"""

_RUN = """\
{command} &
command=$!
code=0
wait $command || code=$?
# A signal ends wait before the command has ended.
while kill -0 $command 2>/dev/null; do code=0; wait $command || code=$?; done
exit $code
"""


def render_ray(
    phase: Phase, options: SlurmOptions, folder: Path, directory: Path, after: str | None = None
) -> str:
    """The text of the sbatch file; the command finds the address in RAY_ADDRESS, or where it has the word ``{address}``.

    Parameters
    ----------
    phase : a single job; its command is what drives Ray
    options : with ``ray_nodes``; cpus_per_task are the cores that Ray uses on each node
    folder, directory, after : as for :func:`simtool.engines.slurm.script.render`

    Raises OptionError for a path that SLURM cannot take, or without ``ray_nodes``.
    """
    if options.ray_nodes is None:
        raise OptionError("Ray inside SLURM needs the number of nodes, got none. Pass --ray-nodes 2.")
    if phase.parts is not None:
        raise ValueError(f"phase {phase.name}: Ray is started in a single job, not in an array")
    ray = shlex.quote(str(Path(sys.executable).with_name("ray")))
    command = command_line(phase.command, {ADDRESS: '"$RAY_ADDRESS"'})
    lines = [
        *head(phase, options, folder, f"{phase.name}-%j.txt", after),
        f"#SBATCH --nodes={options.ray_nodes}",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --no-kill",
        *(["#SBATCH --signal=B:TERM@30"] if has_grace(options) else []),
        *[f"#SBATCH {directive(word)}" for word in options.extra],
        "",
        "set -eu",
        *setup(directory),
        "",
        _START.format(folder=shlex.quote(str(folder.resolve())), ray=ray),
    ]
    if options.ray_nodes > 1:
        lines.append(_OTHERS.format(others=options.ray_nodes - 1, ray=ray))
    lines.append(_RUN.format(command=command))
    return "\n".join(lines)
