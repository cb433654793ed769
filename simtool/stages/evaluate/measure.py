"""One pass over the data: model and baseline side by side, clean and attacked, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simtool.errors import OptionError
from simtool.model import ImplicitModel, input_gradient
from simtool.progress import Progress
from simtool.stages.evaluate.attacks import Attack, inversion_direction, perturb
from simtool.stages.evaluate.baseline import Baseline
from simtool.stages.evaluate.metrics import CLASSIFICATION, Relative, Score, classes_of, loss_gradient
from simtool.stages.evaluate.sparse_network import SparseNetwork


class Measurement:
    """Everything that is counted while the data pass by.

    ``labels`` are those of :func:`metrics.checked_labels` for all samples, or None. Call :meth:`run` once.
    """

    def __init__(
        self,
        model: ImplicitModel | SparseNetwork,
        baseline: Baseline | None,
        task: str,
        labels: np.ndarray | None,
        attack: Attack | None,
        clip: tuple[float, float] | None,
    ) -> None:
        self.model, self.baseline, self.task, self.labels = model, baseline, task, labels
        self.attack, self.clip = attack, clip
        if attack is not None and attack.method == "fgsm":
            if labels is None and task != CLASSIFICATION:
                raise OptionError(
                    "fgsm on a regression needs targets, and the data have none. Pass data with labels, "
                    "or --attack inversion."
                )
            if attack.gradient == "baseline" and baseline is None:
                raise OptionError("--gradient baseline needs the baseline network. Pass --baseline NETWORK.")
        self.features = model.p - int(model.has_bias)
        self.mask = attack.mask(self.features) if attack is not None else np.zeros(0, dtype=np.int64)
        self.score, self.baseline_score = Score(task, model.q), Score(task, model.q)
        sizes = [key for key, _ in attack.epsilons] if attack is not None else []
        self.robust = {key: Score(task, model.q) for key in sizes}
        self.baseline_robust = {key: Score(task, model.q) for key in sizes}
        self.unchanged = dict.fromkeys(sizes, 0)
        # values of the inputs that an attack changed, as the model reads them and as the baseline does (float32)
        self.moved, self.moved_single = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)
        self.output_error, self.state_error = Relative(), Relative()
        self.block_errors = {block.name: Relative() for block in model.blocks}
        self.input_range = (np.inf, -np.inf)
        self.samples = self.agreeing = self.converged = self.iterations = self.iterations_max = 0

    def run(self, batches: Iterable[np.ndarray], progress: Progress) -> None:
        """Pass over ``batches`` of inputs (k, ...)."""
        for batch in batches:
            u = self.model.states_inputs(batch)
            inputs = u[: self.features]
            self.input_range = (
                min(self.input_range[0], float(inputs.min(initial=np.inf))),
                max(self.input_range[1], float(inputs.max(initial=-np.inf))),
            )
            here = slice(self.samples, self.samples + u.shape[1])
            labels = None if self.labels is None else self.labels[..., here]
            self._batch(u, labels)
            self.samples += u.shape[1]
            progress.advance(u.shape[1])

    def idle_attacks(self) -> list[str]:
        """Warnings about sizes of the attack that changed nothing at all."""
        if self.attack is None:
            return []
        idle = [key for key, count in self.moved.items() if not count]
        single = [key for key, count in self.moved_single.items() if not count and key not in idle]
        found = []
        if idle:
            found.append(
                f"the attack {self.attack.method} changed no input value at epsilon {', '.join(idle)}, so its numbers are "
                f"those of the clean data. The inputs lie in [{self.input_range[0]:g}, {self.input_range[1]:g}]: either the "
                "direction is 0 for each of them, or epsilon is too small beside them. Check the data, or pass larger "
                "--epsilon."
            )
        if single and self.baseline is not None:
            found.append(
                f"the attack {self.attack.method} changed no input value of the baseline, which computes in float32, at "
                f"epsilon {', '.join(single)}: its numbers there are those of the clean data. Pass larger --epsilon."
            )
        return found

    def _batch(self, u: np.ndarray, labels: np.ndarray | None) -> None:
        forward = self.model.forward(u)
        self.score.add(forward.Y, labels)
        self.converged += int(forward.converged.sum())
        self.iterations += int(forward.iterations.sum())
        self.iterations_max = max(self.iterations_max, int(forward.iterations.max(initial=0)))
        y_baseline: np.ndarray | None = None
        if self.baseline is not None:
            y_baseline, x_baseline = self.baseline.run(u[: self.features])
            self.baseline_score.add(y_baseline, labels)
            self.output_error.add(forward.Y, y_baseline)
            if self.task == CLASSIFICATION:
                self.agreeing += int((classes_of(forward.Y) == classes_of(y_baseline)).sum())
            if x_baseline is not None:
                self.state_error.add(forward.X, x_baseline)
                for block in self.model.blocks:
                    self.block_errors[block.name].add(forward.X[block.rows], x_baseline[block.rows])
        if self.attack is None:
            return
        if self.attack.method == "inversion":
            direction = inversion_direction(u)
        elif self.attack.gradient == "baseline" and self.baseline is not None:
            source = self.baseline.implicit
            state = source.forward(u)
            target = classes_of(state.Y) if labels is None else labels
            direction = np.sign(input_gradient(source, u, state, loss_gradient(self.task, state.Y, target)))
        else:
            target = classes_of(forward.Y) if labels is None else labels
            gradient = loss_gradient(self.task, forward.Y, target)
            assert isinstance(self.model, ImplicitModel)  # the stage refuses this attack for others
            direction = np.sign(input_gradient(self.model, u, forward, gradient))
        for key, epsilon in self.attack.epsilons:
            moved = perturb(u, direction, self.mask, epsilon, self.clip)
            self.moved[key] += int((moved != u).sum())
            self.moved_single[key] += int((moved.astype(np.float32) != u.astype(np.float32)).sum())
            y = self.model.forward(moved).Y
            self.robust[key].add(y, labels)
            if self.task == CLASSIFICATION:
                self.unchanged[key] += int((classes_of(y) == classes_of(forward.Y)).sum())
            if self.baseline is not None:
                self.baseline_robust[key].add(self.baseline.run(moved[: self.features])[0], labels)
