"""The GPU check, with the CPU as its own device: what it covers, and that it sees what it should see."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from sslref import gpu, registry, train
from sslref.gpu_cases import CASES, HOST_ONLY, Case

CONTRACT = {
    "nn": "ViT SmallResNet UNet EMATeacher MemoryQueue cosine_schedule",
    "nn.mae": "patchify unpatchify random_masking restore_tokens sincos_2d normalize_patches masked_patch_loss "
    "MaskedAutoencoder",
    "evaluate": "linear_probe knn_classify ari nmi hungarian_miou foreground_ari region_j boundary_f auroc recall_at_k "
    "psnr ssim certified_accuracy effective_rank spectrum",
    "optical": "warp end_point_error flow_to_color",
    "densecl": "dense_correspondence info_nce dense_info_nce densecl_loss DenseHead KeyQueue",
    "simclr": "nt_xent contrastive_accuracy random_crop_boxes color_distort gaussian_blur projection_head LARS",
    "know_your_ssl": "sinkhorn swav_loss info_nce KeyQueue ema_update byol_loss dino_loss update_center "
    "barlow_twins_loss vicreg_loss masked_patch_loss",
    "mec": "taylor_log_det coding_constants coding_length mec_loss lamda_schedule",
    "mp3": "context_mask context_attention position_prediction_loss position_accuracy MP3",
    "mixedae": "mixing_assignment mix unmix homologous_attention homologous_contrastive_loss mixed_reconstruction_loss "
    "homology_rate",
    "colormae": "color_filter noise_bank sample_windows color_mask radial_power",
    "croco": "random_mask gather_visible scatter_visible completion_loss CrossAttention DecoderBlock CroCo",
    "droppos": "position_smoothing drop_positions affinity_weights position_loss position_accuracy DropPos",
    "cim": "PatchCodebook generator_loss sample_tokens replaced_labels revdet_loss sliding_window_normalize "
    "respix_loss",
    "mcmae": "upsample_mask MaskedConvBlock MultiScaleFusion MCMAE",
    "gmml": "group_mask corrupt gmml_corrupt masked_l1 multi_block_average ReconstructionHead",
    "sts": "region_masks motion_boundary orientation_histogram dominant_color motion_statistics appearance_statistics "
    "sts_loss",
    "nutime": "numerical_scales scale_weights NumericallyMultiscaledEmbedding window_statistics WindowEmbedding "
    "random_resized_crop",
    "selftask_gnn": "pairwise_distance_labels distance_to_cluster_targets distance_to_labeled_targets "
    "label_propagation context_label_distribution attribute_similarity_pairs correct_labels",
    "s2_uniseg": "grid_edges edge_similarity pool_layer affinity_similarity supernode_features uniap greedy_merge "
    "query_map querysd_loss",
    "autolink": "soft_keypoints edge_weights draw_edges edge_map block_mask linked_edges",
    "extrema": "sample_masks ClassAttentionBlock ExtremaEncoder extrema_loss ema_momentum",
    "slotcon": "semantic_grouping inverse_augmentation grouping_loss update_center slot_presence slot_contrastive_loss",
    "randomized_quantization": "bin_edges bin_index quantize randomized_quantization RandomizedQuantization",
    "scatsimclr": "scattering_channels morlet_bank scattering2d rotation_views jigsaw_views ScatSimCLR scatsimclr_loss",
    "crate_mae": "coding_rate subspace_rate sparsity MSSA ISTA EncoderBlock DecoderBlock CrateMAE",
    "eva": "block_mask mask_tokens feature_loss scale_gradient QVBiasAttention EVA",
    "memmc_mae": "memory_attention MemoryAttention MultiLevelCrossAttention ms_ssim anomaly_score anomaly_map MemMCMAE",
}


def test_every_function_of_the_contracts_is_compared():
    names = {f"{module}.{name}" for module, functions in CONTRACT.items() for name in functions.split()}
    assert names - {c.name for c in CASES} == set(HOST_ONLY)
    assert all(callable(gpu._resolve(name)) for name in names)


@pytest.mark.slow
def test_every_comparison_passes_on_the_cpu():
    checks = [c for case in CASES for c in gpu._compare(case, "cpu")]
    assert [c for c in checks if not c.passed] == []
    assert {c.precision for c in checks} == {"float32", "bf16"}


class Broken:
    """Functions of this class stand in for `evaluate.psnr`, with a fault that the check has to see."""

    @staticmethod
    def sign(x, y):
        return -(x - y).square().mean() if x.dtype == torch.float32 else (x - y).square().mean()

    @staticmethod
    def gradient(x, y):
        return (x - y).square().mean() if x.dtype == torch.float64 else (x.detach() - y).square().mean() + 0 * x.sum()

    @staticmethod
    def infinite(x, y):
        return (x - y).square().mean() / (x.dtype == torch.float64)

    @staticmethod
    def nan(x, y):
        return (x - y).square().mean() * (1 if x.dtype == torch.float64 else torch.nan)

    @staticmethod
    def integers(x, y):
        return (x > y).sum() + (x.dtype == torch.float32)

    @staticmethod
    def shape(x, y):
        return x if x.dtype == torch.float64 else x[:1]

    @staticmethod
    def raises(x, y):
        if x.dtype == torch.float32:
            raise RuntimeError("no kernel for this")
        return x


@pytest.mark.parametrize("fault", ["sign", "gradient", "infinite", "nan", "integers", "shape", "raises"])
def test_a_fault_on_the_device_fails(monkeypatch, fault):
    monkeypatch.setattr("sslref.evaluate.psnr", getattr(Broken, fault))
    case = next(c for c in CASES if c.name == "evaluate.psnr")
    result = next(gpu._compare(case, "cpu"))
    assert not result.passed
    assert result.note == ("RuntimeError: no kernel for this" if fault == "raises" else "")


def test_a_random_function_has_to_repeat_itself_and_to_obey_its_law(monkeypatch):
    case = Case("evaluate.psnr", lambda d: (d.normal(5),), law=lambda out, x: bool((out >= x).all()))
    for function, passed in [
        (lambda x, generator: x + torch.rand(5, generator=generator), True),
        (lambda x, generator: x + torch.rand(5), False),
        (lambda x, generator: x - torch.rand(5, generator=generator), False),
    ]:
        monkeypatch.setattr("sslref.evaluate.psnr", function)
        assert {c.passed for c in gpu._compare(case, "cpu")} == {passed}


def recipe(loss):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    task = train.Task(
        model=model,
        batch=lambda generator: torch.rand(4, 3, generator=generator, device=generator.device),
        loss=loss,
        optimizer=lambda model: torch.optim.Adam(model.parameters()),
    )
    return train.Recipe(task, steps=10, batch_size=4, about="a toy")


class Toy:
    def __init__(self, loss):
        self.recipe = lambda source, *, device, size: recipe(loss)


def measured(monkeypatch, loss, **options):
    monkeypatch.setattr(registry, "load", lambda slug: Toy(loss))
    return list(gpu._train("toy", "cpu", **{"seconds": 0} | options))


def test_a_step_is_measured_as_fit_would_run_it(monkeypatch):
    dtypes = set()

    def loss(model, batch):
        out = model(batch)
        dtypes.add(out.dtype)
        assert model.weight.shape == (1, 3)  # attributes of the model are within reach
        return {"loss": out.square().mean(), "other": out.mean()}

    rows = measured(monkeypatch, loss)
    assert 0 < abs(rows[0].loss - rows[1].loss) < 0.02 * rows[0].loss  # bfloat16, and nothing else
    rows = measured(monkeypatch, loss, seconds=0.02)
    assert [(r.precision, r.compiled, r.passed) for r in rows] == [("float32", False, True), ("bf16", False, True)]
    assert dtypes == {torch.float32}
    assert all(r.step_ms > 0 and r.samples_per_second > 0 and r.batch_size == 4 for r in rows)


@pytest.mark.parametrize(
    ("loss", "operation"),
    [
        (lambda model, batch: model(batch).mean() * float(batch.mean()), "_local_scalar_dense"),
        (lambda model, batch: model(batch)[batch[:, 0] > 0].mean(), "index"),
        (lambda model, batch: model(batch)[(batch[:, 0] > 0).nonzero()].mean(), "nonzero"),
        (lambda model, batch: model(batch).masked_select(batch[:, :1] > 0).mean(), "masked_select"),
        (lambda model, batch: model(batch).mean() * len(batch.unique()), "_unique2"),
    ],
)
def test_a_step_that_makes_the_host_wait_fails_and_names_the_line(monkeypatch, loss, operation):
    row = measured(monkeypatch, loss)[0]
    assert not row.passed
    assert any(wait.startswith(f"{operation} at ") for wait in row.host_waits)


def test_a_loss_that_is_not_finite_or_a_step_that_raises_fails(monkeypatch):
    row = measured(monkeypatch, lambda model, batch: model(batch).mean() / 0)[0]
    assert (row.passed, row.loss) == (False, None)
    row = measured(monkeypatch, lambda model, batch: model(batch[:, :2]).mean())[0]
    assert not row.passed
    assert row.note.startswith("RuntimeError")


@pytest.mark.slow
def test_the_report_of_the_whole(monkeypatch, tmp_path):
    """Every paper's own step runs and leaves the host free; the file says all that its description says."""
    monkeypatch.setattr(gpu, "CASES", CASES[:1])
    said = []
    report = gpu.check("cpu", out=tmp_path / "a" / "cpu.json", seconds=0, progress=said.append)
    assert report.passed, said
    content = json.loads((tmp_path / "a" / "cpu.json").read_text())
    assert content == asdict(report)
    assert content.keys() == set(gpu.Report.__dataclass_fields__)
    assert {r["slug"] for r in content["training"]} == set(registry.papers())
    assert all(r["host_waits"] == [] for r in content["training"])
    for key in (*gpu.Report.__dataclass_fields__, *gpu.Check.__dataclass_fields__, *gpu.Training.__dataclass_fields__):
        assert key in gpu.__doc__


def test_claims_are_run_written_and_reported(monkeypatch, tmp_path):
    class Record:
        slug, claims = "toy", ()

    written, asked = [], {}

    def run(slug, profile, **options):
        asked[slug] = profile, options["device"], options["jobs"]
        return Record

    monkeypatch.setattr(gpu, "CASES", ())
    monkeypatch.setattr(gpu, "_train", lambda *args: [])
    monkeypatch.setattr(gpu.ledger, "run", run)
    monkeypatch.setattr(gpu.ledger, "write", written.append)
    monkeypatch.setattr(gpu.ledger, "to_json", lambda record: {"slug": record.slug})
    report = gpu.check("cpu", claims=True, out=tmp_path / "cpu.json", jobs=3)
    assert report.claims == {slug: {"slug": "toy"} for slug in registry.papers()}
    assert set(asked.values()) == {("gpu", "cpu", 3)}
    assert len(written) == len(asked)


def test_the_command_line_says_what_failed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(registry, "papers", dict)
    monkeypatch.setattr(gpu.digest, "reach", lambda *names: [])
    arguments = ["--device", "cpu", "--out", str(tmp_path / "cpu.json")]
    monkeypatch.setattr(gpu, "CASES", CASES[-1:])
    assert gpu.main(arguments) == 0
    broken = replace(CASES[-1], float32=-1.0)
    monkeypatch.setattr(gpu, "CASES", (broken,))
    assert gpu.main(arguments) == 1
    assert f"FAILED {broken.name} in float32" in capsys.readouterr().out
    assert not json.loads((tmp_path / "cpu.json").read_text())["passed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_one_line(capsys):
    assert gpu.main(["--device", "cuda"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("sslref: device: PyTorch finds no 'cuda'")
    assert len(captured.err.splitlines()) == 1


def test_the_file_of_a_device(monkeypatch):
    assert gpu.file_of("cpu").parts[-3:] == ("_build", "gpu", "cpu.json")
    monkeypatch.setattr(gpu, "_name", lambda device: ("NVIDIA H200", 143771))
    assert gpu.file_of("cuda:0").parts[-3:] == ("benchmarks", "gpu", "nvidia-h200.json")
