"""Properties of the solve and of the plan, for small random indexes and environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.dependency_graph import DependencyGraph, newly_unmet
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import NoSolution
from colablock.matrix.model import Matrix
from colablock.planning.plan import Action, Plan, Remedy, Target
from colablock.planning.planned import PlannedChange
from colablock.planning.planner import make_plan
from colablock.resolver import resolver
from colablock.resolver.model import Request, Resolution
from colablock.resolver.repair import Repairer
from colablock.resolver.resolver import resolve
from tests.support.dict_source import PYTHON_312, DictSource, entries, installed, pins_of

NAMES = ("a", "b", "c", "d")
VERSIONS = ("1", "2", "3")
OPERATORS = ("", "==1", "==2", "==3", "<2", "<3", ">=2", ">=3", "!=2")
EXTRA = "; extra == 'x'"


@st.composite
def needs_of(draw: st.DrawFn, name: str) -> list[str]:
    """Draw a few requirements for one version of *name*, some of them for its extra."""
    lines = []
    for needed in draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True)):
        if needed != name:
            asked = f"{needed}[x]" if draw(st.integers(0, 2)) == 0 else needed
            marker = EXTRA if draw(st.integers(0, 2)) == 0 else ""
            lines.append(f"{asked}{draw(st.sampled_from(OPERATORS))}{marker}")
    return lines


@dataclass(frozen=True)
class DrawnProblem:
    """An index, installed distributions, and root requirements."""

    index: Mapping[str, Sequence[str]]
    image: Mapping[str, Sequence[str]]
    roots: tuple[str, ...]
    protected: frozenset[str] = frozenset()

    @property
    def installed(self) -> dict[NormalizedName, Installed]:
        return installed(self.image)

    def request(self, *, roots: Sequence[str] | None = None) -> Request:
        return Request(
            environment=PYTHON_312,
            roots=entries(*(self.roots if roots is None else roots)),
            installed=self.installed,
            protected=frozenset(canonicalize_name(name) for name in self.protected),
        )

    def solve(self) -> Resolution:
        """Return the resolution.  A problem without a solution is no example for a property of solutions."""
        try:
            return resolve(self.request(), DictSource(self.index))
        except NoSolution:
            assume(False)
            raise

    def snapshot(self) -> Snapshot:
        return Snapshot(
            environment=PYTHON_312,
            python="/usr/bin/python3",
            prefix="/usr",
            site="/usr/lib",
            installed=self.installed,
            protected=self.request().protected,
        )


@st.composite
def worlds(draw: st.DrawFn, *, with_image: bool = True) -> DrawnProblem:
    index = {
        f"{name} {version}": draw(needs_of(name))
        for name in NAMES
        for version in VERSIONS
        if draw(st.integers(0, 4)) != 0
    }
    image = {}
    if with_image:
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
            version = draw(st.sampled_from(VERSIONS))
            image[f"{name} {version}"] = draw(needs_of(name))
    roots = tuple(
        f"{name}{draw(st.sampled_from(['', '', '[x]']))}{draw(st.sampled_from(OPERATORS))}"
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    )
    there = [key.split()[0] for key in image]
    protected = frozenset(draw(st.lists(st.sampled_from(there), max_size=1)) if there else ())
    return DrawnProblem(index, image, roots, protected)


def applying(lines: Sequence[str], extras: frozenset[str]) -> list[Requirement]:
    """Return the requirements among *lines* that apply with *extras*."""
    parsed = [Requirement(line) for line in lines]
    return [
        r
        for r in parsed
        if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


@given(worlds())
def test_the_pins_meet_all_requirements(world: DrawnProblem) -> None:
    found = world.solve()
    state = pins_of(found)
    before = {key.split()[0]: key.split()[1] for key in world.image}
    graph = DependencyGraph.of(world.snapshot())
    for root in map(Requirement, world.roots):
        assert root.specifier.contains(state[root.name])
    for name, pin in found.pins.items():
        key = f"{name} {pin.version}"
        lines = world.image[key] if pin.is_installed else world.index[key]
        for needed in applying(lines, pin.extras):
            held = needed.specifier.contains(state.get(needed.name, "0"))
            # A requirement of an installed distribution that was unmet before may stay unmet. One of an
            # extra may do so only if something installed asks for the extra.
            was_unmet = needed.name in before and not needed.specifier.contains(before[needed.name])
            was_asked = needed in applying(lines, frozenset()) or (name, "x") in graph.asked
            assert held or (pin.is_installed and was_unmet and was_asked), f"{key} needs {needed}"


LEFT_OVERS = DrawnProblem(  # `c` and `d` need each other, and are left over from branches that led nowhere
    index={
        "a 1": [],
        "a 2": ["d<2"],
        "a 3": ["d<2"],
        "b 2": ["c[x]<2"],
        "b 3": ["a>=2"],
        "c 1": ["a<2", "d"],
        "c 2": [],
        "d 1": ["c!=2"],
        "d 2": [],
    },
    image={},
    roots=("a",),
)


@given(worlds(with_image=False))
@example(LEFT_OVERS)
def test_every_pin_is_required(world: DrawnProblem) -> None:
    found = world.solve()
    reached: set[str] = set()
    queue = [Requirement(root).name for root in world.roots]
    while queue:
        name = queue.pop()
        if name not in reached:
            reached.add(name)
            pin = found.pins[canonicalize_name(name)]
            queue += [r.name for r in applying(world.index[f"{name} {pin.version}"], pin.extras)]
    assert reached == set(pins_of(found))


TIE = DrawnProblem(  # the newest of `a` and the newest of `b` exclude each other
    index={"a 1": [], "a 2": ["c==1"], "b 1": [], "b 2": ["c==2"], "c 1": [], "c 2": []},
    image={},
    roots=("a", "b"),
)


@given(worlds(), st.permutations(range(3)))
@example(TIE, [1, 0, 2])
def test_the_order_of_the_roots_changes_nothing(world: DrawnProblem, order: Sequence[int]) -> None:
    shuffled = [world.roots[place] for place in order if place < len(world.roots)]
    assert outcome(world, world.roots) == outcome(world, shuffled)


@given(worlds(), st.data())
def test_a_lock_gives_the_same_without_a_search(world: DrawnProblem, data: st.DataObject) -> None:
    known = sorted(world.index)
    locked = {name: [key for key in known if key.startswith(f"{name} ")] for name in NAMES}
    keys = [data.draw(st.sampled_from(keys)) for keys in locked.values() if keys]
    source = DictSource({key: world.index[key] for key in keys})
    fixed = {canonicalize_name(key.split()[0]): Version(key.split()[1]) for key in keys}
    request = replace(world.request(), fixed=fixed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "only_solution", lambda *_: None)
        searched = told(request, source)
    assert told(request, source) == searched


def told(request: Request, source: DictSource) -> object:
    """Return everything that a solve tells, or the conflict."""
    try:
        found = resolve(request, source)
    except NoSolution as error:
        return str(error), sorted(error.names)
    return found.pins, found.released, found.rejections


def outcome(world: DrawnProblem, roots: Sequence[str]) -> dict[str, str] | None:
    try:
        return pins_of(resolve(world.request(roots=roots), DictSource(world.index)))
    except NoSolution:
        return None


@given(worlds())
def test_nothing_moves_if_everything_may_stay(world: DrawnProblem) -> None:
    try:
        held = resolve(world.request(), DictSource(world.index), may_release=False)
    except NoSolution:
        assume(False)
        raise
    found = resolve(world.request(), DictSource(world.index))
    assert found.released == {}
    there = world.installed.keys() & found.pins.keys()
    assert [name for name in there if not found.pins[name].is_installed] == []
    assert pins_of(found) == pins_of(held)


@given(worlds())
@example(DrawnProblem({"a 1": ["b"], "a 2": ["b>=2"]}, {"a 3": [], "b 1": []}, ()))
@example(DrawnProblem({"a 1": ["b>=2"], "a 2": ["b>=3"]}, {"a 3": [], "b 1": []}, ()))
@example(DrawnProblem({"a 1": [], "a 2": ["c"], "c 1": [], "c 2": ["b>=2"]}, {"a 3": [], "b 1": []}, ()))
@example(DrawnProblem({"a 1rc1": ["b"], "a 2": ["b>=2"]}, {"a 3": [], "b 1": ["a<2"]}, ()))
@example(DrawnProblem({"a 1rc1": [], "a 2": ["b>=2"]}, {"a 3": [], "b 1": []}, ()))
@example(DrawnProblem({"a 1": [], "a 2": ["unreadable"]}, {"a 3": [], "b 1": []}, ()))
def test_one_name_moves_as_it_does_beside_another(world: DrawnProblem) -> None:
    """If only one name may move, no search is needed.  Another root, which is new, needs one."""
    broken = next((name for name in sorted(world.installed) if name not in world.protected), None)
    assume(broken)
    assert broken
    source = DictSource({**world.index, "other 1": []})

    def repaired(*roots: str) -> dict[str, str] | None:
        request = world.request(roots=roots)
        request = replace(request, released={broken: "it is broken"}, unfit=frozenset({broken}))
        try:
            return pins_of(resolve(request, source, may_release=False))
        except NoSolution:
            return None

    alone, beside = repaired(broken), repaired(broken, "other")
    assert (alone is None) == (beside is None)
    if alone is not None and beside is not None:
        assert alone[broken] == beside[broken]
        if alone.keys() <= world.installed.keys():
            assert {**alone, "other": "1"} == beside


@given(worlds())
def test_held_names_are_not_looked_up(world: DrawnProblem) -> None:
    source = DictSource(world.index)
    try:
        found = resolve(world.request(), source)
    except NoSolution:
        assume(False)
        raise
    assume(not found.released)
    assert set(source.asked) & world.installed.keys() == set()


@given(worlds(with_image=False))
def test_an_installed_solution_is_found_again_without_lookups(world: DrawnProblem) -> None:
    once = world.solve()
    keys = [f"{name} {pin.version}" for name, pin in once.pins.items()]
    there = replace(world, image={key: world.index[key] for key in keys})
    source = DictSource(world.index)
    again = resolve(there.request(), source)
    assert pins_of(again) == pins_of(once)
    assert all(pin.is_installed for pin in again.pins.values())
    assert source.asked == []


@given(worlds())
def test_protected_distributions_stay(world: DrawnProblem) -> None:
    found = world.solve()
    for name in world.request().protected & found.pins.keys():
        assert found.pins[name].is_installed


@given(worlds(with_image=False))
def test_a_solution_is_found_if_one_exists(world: DrawnProblem) -> None:
    assert (outcome(world, world.roots) is not None) == brute_force(world)


def brute_force(world: DrawnProblem) -> bool:
    """Whether some choice of versions meets all requirements.  It tries every choice."""

    def works(chosen: Mapping[str, str], asked: list[Requirement], done: frozenset[str]) -> bool:
        decided = [want for want in asked if want.name in chosen]
        if not all(want.specifier.contains(chosen[want.name]) for want in decided):
            return False
        for want in asked:
            if want.name not in chosen:
                options = [v for v in VERSIONS if f"{want.name} {v}" in world.index]
                return any(works({**chosen, want.name: v}, asked, done) for v in options)
            missing = {f"{want.name}[{extra}]" for extra in ("", *want.extras)} - done
            if missing:
                lines = world.index[f"{want.name} {chosen[want.name]}"]
                more = applying(lines, frozenset(want.extras))
                return works(chosen, [*asked, *more], done | missing)
        return True

    return works({}, [Requirement(root) for root in world.roots], frozenset())


MATRIX = Matrix(name="m", source="m.toml", digest="0")


def planned(world: DrawnProblem, found: Resolution, snapshot: Snapshot, broken: Remedy | None = None) -> Plan:
    request = replace(found.request, installed=snapshot.installed)
    return make_plan(
        matrix=MATRIX,
        resolution=found,
        snapshot=snapshot,
        target=Target.KERNEL,
        repair=Repairer(request, DictSource(world.index)),
        broken=broken,
    )


def replay(plan: Plan, world: DrawnProblem) -> dict[str, Sequence[str]]:
    """Return what is installed after the steps of *plan*, in their order."""
    state = dict(world.image)
    for step in plan.steps:
        if step.action is not Action.INSTALL:
            del state[f"{step.name} {step.previous}"]
        if step.action is not Action.REMOVE:
            key = f"{step.name} {step.version}"
            assert not any(there.split()[0] == step.name for there in state)
            state[key] = world.index[key]
    return state


@given(worlds(), st.sampled_from([None, *Remedy]))
def test_the_steps_install_every_pin(world: DrawnProblem, broken: Remedy | None) -> None:
    found = world.solve()
    after = replay(planned(world, found, world.snapshot(), broken), world)
    for name, pin in found.pins.items():
        assert f"{name} {pin.version}" in after


@given(worlds(), st.sampled_from([None, *Remedy]))
def test_every_newly_broken_distribution_is_in_the_plan(world: DrawnProblem, broken: Remedy | None) -> None:
    found, snapshot = world.solve(), world.snapshot()
    plan = planned(world, found, snapshot, broken)
    before = DependencyGraph.of(snapshot)
    after = before.with_installed(installed(replay(plan, world)))
    told = {item.name for item in plan.breakages if item.remedy is Remedy.LEAVE}
    changed = {step.name for step in plan.steps}
    newly = newly_unmet(after.installed, before, after, changed)
    assert [one for one in newly if one.name not in told] == []


@given(worlds(), st.sampled_from([None, *Remedy]))
def test_the_proof_finds_no_unmet_requirement_of_the_stack(
    world: DrawnProblem, broken: Remedy | None
) -> None:
    found, snapshot = world.solve(), world.snapshot()
    plan = planned(world, found, snapshot, broken)
    change = PlannedChange(
        plan=plan,
        matrix=MATRIX,
        resolution=found,
        snapshot=snapshot,
        preparer=None,  # type: ignore[arg-type]
    )
    after = DependencyGraph(installed(replay(plan, world)), PYTHON_312)
    assert after.unmet_lines(found.pins) - change.unmet_before() == set()


@given(worlds())
def test_a_protected_distribution_is_not_broken_by_a_version_that_moves(world: DrawnProblem) -> None:
    plan = planned(world, world.solve(), world.snapshot())
    direct = {item.name for item in plan.breakages if item.direct}
    assert direct & world.request().protected == set()


@given(worlds(), st.sampled_from([None, *Remedy]))
def test_broken_distributions_are_removed_or_changed(world: DrawnProblem, broken: Remedy | None) -> None:
    found, snapshot = world.solve(), world.snapshot()
    plan = planned(world, found, snapshot, broken)
    after = installed(replay(plan, world))
    for item in plan.breakages:
        if item.remedy is Remedy.REMOVE:
            assert item.name not in after
        elif item.remedy is Remedy.REPAIR:
            assert after[item.name].version != item.version


@given(worlds())
def test_a_second_plan_is_empty(world: DrawnProblem) -> None:
    found = world.solve()
    after = replace(world, image=replay(planned(world, found, world.snapshot()), world))
    again = resolve(after.request(), DictSource(world.index))
    assert planned(after, again, after.snapshot()).steps == ()
