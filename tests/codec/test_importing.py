"""``codec import``: CompressAI's own classes, saved with random weights, give the same pictures through our files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.models import (
    Cheng2020Anchor,
    Cheng2020Attention,
    FactorizedPrior,
    FactorizedPriorReLU,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
    ScaleHyperprior,
)
from PIL import Image

from bitstream.engines import default_engine
from bitstream.errors import UsageError
from codec import Codec, importing
from codec.importing import import_weights
from models.importing import LMBDAS, adopt
from models.manifest import tomllib
from models.runtime import LoadedModel

SOURCES = {
    "bmshj2018-factorized": (lambda: FactorizedPrior(8, 12), "factorized"),
    "bmshj2018-hyperprior": (lambda: ScaleHyperprior(8, 12), "hyperprior"),
    "mbt2018-mean": (lambda: MeanScaleHyperprior(8, 12), "hyperprior"),
    "mbt2018": (lambda: JointAutoregressiveHierarchicalPriors(8, 12), "joint"),
    "cheng2020-anchor": (lambda: Cheng2020Anchor(8), "attention"),
    "cheng2020-attn": (lambda: Cheng2020Attention(8), "attention"),
}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Calibrate on fewer crops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "CROPS", 8)
        yield


@pytest.fixture(scope="module")
def x():
    """A (1, 3, 128, 192) picture of waves and noise in [0, 1]."""
    generator = torch.Generator().manual_seed(5)
    row, column = torch.arange(128.0)[:, None], torch.arange(192.0)
    waves = torch.stack(
        [0.5 + 0.3 * torch.sin(row * a) * torch.cos(column * b) for a, b in ((0.1, 0.05), (0.03, 0.2), (0.3, 0.1))]
    )
    return (waves + 0.05 * torch.randn(3, 128, 192, generator=generator)).clamp(0, 1)[None]


@pytest.fixture(scope="module", params=SOURCES)
def imported(request, x, tmp_path_factory):
    """(CompressAI's model with random weights that make y span several symbols, its import, the manifest row)."""
    make, ours = SOURCES[request.param]
    torch.manual_seed(3)
    source = make().eval()
    with torch.no_grad():
        y = source.g_a(x)
        last = (
            source.g_a[6] if isinstance(source, FactorizedPrior | ScaleHyperprior) and hasattr(source.g_a[6], "bias") else None
        )
        if last is not None:
            factor = 3 / y.std()
            last.weight.mul_(factor)
            last.bias.mul_(factor)
        source.entropy_bottleneck.quantiles[:, 0, 1].uniform_(-0.4, 0.4)
    folder = tmp_path_factory.mktemp("import")
    torch.save(source.state_dict(), folder / f"{request.param}-3-0123abcd.pth.tar")
    row = import_weights(folder / f"{request.param}-3-0123abcd.pth.tar", "mine", None, None, folder)
    assert row["model"] == ours
    return source, LoadedModel.load(folder / "mine.safetensors", torch.device("cpu")), row


def test_reconstruction_is_that_of_compressais_forward_pass(imported, x):
    source, model, _ = imported
    engine = default_engine()
    payloads, crc = model.compress(x, 0, engine)
    assert model.checkpoint.transforms is not None  # it needs CompressAI no more
    x_hat = model.decompress(payloads, 0, 128, 192, engine, crc)
    with torch.no_grad():
        expected = source(x)["x_hat"]
    assert expected.std() > 1e-4  # not a flat picture
    far = ((x_hat - expected).abs() > 1 / 255).float().mean()
    # With means, y - mean near k + 1/2 may round to the other side: the integer mean is not the float one.
    assert far <= (0.01 if isinstance(source, MeanScaleHyperprior) and not hasattr(source, "context_prediction") else 0)


def test_file_decodes_and_has_one_level(imported, x):
    _, model, row = imported
    assert row["max_level"] == 0
    assert row["rd"][0]["lmbda"] == LMBDAS["psnr"][2] == 0.0067
    pixels = (x[0].permute(1, 2, 0) * 255).round().byte().numpy()
    coder = Codec.__new__(Codec)
    coder.model, coder.engine, coder.timings = model, default_engine(), {}
    data = coder.encode(pixels, quality=70)
    assert data == coder.encode(pixels, quality=10)
    assert coder.decode(data).size == (192, 128)


def test_symbols_of_the_hyperprior_are_coded_at_about_the_estimate(imported, x):
    """Real bytes against CompressAI's own likelihoods, for models whose latents are of some size."""
    source, model, _ = imported
    with torch.no_grad():
        out = source(x)["likelihoods"]
    estimate = sum(float(-value.log2().sum()) for value in out.values()) / 8
    payloads, _ = model.compress(x, 0, default_engine())
    assert sum(map(len, payloads)) < 1.05 * estimate + 300


def test_old_names_of_tensors_are_understood(tmp_path):
    torch.manual_seed(0)
    state = ScaleHyperprior(8, 12).state_dict()
    old = {}
    for key, value in state.items():
        for new, before in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
            key = key.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{before}")
        old[f"module.{key}"] = value
    name, network = adopt(old, 0.013)
    assert name == "hyperprior"
    assert torch.equal(network.entropy_bottleneck.matrices[2], state["entropy_bottleneck.matrices.2"])


def save(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactorizedPriorReLU(8, 12).state_dict(), "cannot be imported|can be imported"),
        (lambda: {"a": torch.zeros(1)}, "not a model that can be imported"),
        (lambda: ScaleHyperprior(8, 12).state_dict() | {"Gain": torch.ones(3)}, "a tensor Gain that hyperprior does not"),
        (lambda: {k: v for k, v in ScaleHyperprior(8, 12).state_dict().items() if k != "g_s.2.bias"}, "no tensor g_s.2.bias"),
        (lambda: ScaleHyperprior(8, 12).state_dict() | {"g_s.2.bias": torch.zeros(9)}, "do not fit hyperprior"),
        (lambda: {}, "not a state dict"),
        (lambda: {1: torch.zeros(2)}, "not a state dict"),
        (lambda: ScaleHyperprior(8, 12).state_dict() | {"g_s.2.bias": torch.full((8,), torch.nan)}, "not finite"),
        (lambda: ScaleHyperprior(8, 12).state_dict() | {"h_s.4.weight": torch.tensor(1.0)}, "has no channels"),
        (lambda: [1, 2], "not a state dict"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_in_one_sentence(make, message, tmp_path):
    path = save(make(), tmp_path / "weights-hyperprior-1-x.pth")
    with pytest.raises(UsageError, match=message):
        import_weights(path, "mine", None, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a state", b"e\n", bytes(range(256))])
def test_a_file_that_is_no_pickle_of_tensors_is_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UsageError, match="not weights that torch can read safely"):
        import_weights(tmp_path / "x.pth", "mine", None, 0.01, tmp_path / "out")


def test_lmbda_must_be_known(tmp_path):
    path = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="give it with --lmbda"):
        import_weights(path, "mine", None, None, tmp_path / "out")


def test_the_command_imports_below_state_dict_and_codes(tmp_path, picture, call_codec):
    torch.manual_seed(1)
    path = save({"state_dict": FactorizedPrior(8, 12).state_dict()}, tmp_path / "checkpoint_best.pth.tar")
    result = call_codec("import", path, "--as", "f8", "--lmbda", 0.025, "--out", tmp_path / "out", "--threads", 1)
    assert "f8: factorized" in result.output
    assert Codec(tmp_path / "out" / "f8.safetensors", "cpu").encode(picture(40, 50))


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    path = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="no name for a checkpoint"):
        import_weights(path, name, None, 0.01, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lmbda", [0.0, -1.0, float("nan"), float("inf")])
def test_lmbda_must_be_a_positive_number(tmp_path, lmbda):
    path = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="expected a number above 0"):
        import_weights(path, "mine", None, lmbda, tmp_path / "out")


def test_a_name_is_replaced_only_when_asked(tmp_path):
    torch.manual_seed(0)
    path = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "weights.pth")
    first = import_weights(path, "mine", None, 0.01, tmp_path)
    other = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UsageError, match="already the name"):
        import_weights(other, "mine", None, 0.01, tmp_path)
    assert import_weights(other, "mine", None, 0.01, tmp_path, overwrite=True)["sha256"] != first["sha256"]


def test_what_weights_are_tuned_for_is_in_their_name(tmp_path):
    torch.save(ScaleHyperprior(8, 12).state_dict(), tmp_path / "bmshj2018-hyperprior-ms-ssim-3-92dd7878.pth.tar")
    row = import_weights(next(tmp_path.iterdir()), "mine", None, None, tmp_path / "out")
    assert row["tune"] == "ms-ssim"
    assert row["rd"][0]["lmbda"] == pytest.approx(8.73 / 1250, rel=1e-3)


@pytest.mark.parametrize(
    "kind", ["bmshj2018-factorized-prior-3-5c6f152b", "cheng2020_attn-mse-3-2d07bbdf", "mbt2018-mean-3-723404a8"]
)
def test_published_names_say_the_lmbda(kind):
    assert importing._lmbda_of(Path(f"{kind}.pth.tar"), "psnr") == 0.0067


class Trap:
    """Unpickling this would call ``pytest.fail``."""

    def __reduce__(self):
        return pytest.fail, ("code in a file of weights was run",)


def test_no_code_in_a_file_of_weights_is_run(tmp_path):
    torch.save({"state_dict": Trap()}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="not weights that torch can read safely"):
        import_weights(tmp_path / "x.pth", "mine", None, 0.01, tmp_path / "out")


def test_another_measure_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tune is 'vmaf', expected one of psnr, ms-ssim"):
        import_weights(tmp_path / "x.pth", "mine", None, 0.01, tmp_path / "out", tune="vmaf")


def test_the_command_replaces_a_name_only_when_asked(tmp_path, call_codec):
    path = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.toml").write_text('[f8]\nfile = "f8.safetensors"\nsha256 = "00"\n')
    arguments = ("import", path, "--as", "f8", "--lmbda", 0.025, "--out", tmp_path / "out")
    assert "f8 is already the name" in call_codec(*arguments, code=2).stderr
    call_codec(*arguments, "-f")


def test_pictures_of_a_folder_calibrate_and_a_measure_may_be_given(tmp_path, call_codec):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 258, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (255, 300)).save(tmp_path / "in" / "small.png")
    (crop,) = importing._pictures(tmp_path / "in")
    whole = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    places = ((top, left) for top in range(45) for left in range(3))
    assert any(torch.equal(crop[0], whole[:, top : top + 256, left : left + 256]) for top, left in places)
    path = save(FactorizedPrior(8, 12).state_dict(), tmp_path / "weights.pth")
    options = ("--as", "mine", "--lmbda", 8.73, "--tune", "ms-ssim", "--data", tmp_path / "in", "--out", tmp_path / "out")
    assert "λ 0.006984" in call_codec("import", path, *options).output
    row = tomllib.loads((tmp_path / "out" / "manifest.toml").read_text())["mine"]
    assert (row["tune"], row["measured_on"]) == ("ms-ssim", "1 crops")
