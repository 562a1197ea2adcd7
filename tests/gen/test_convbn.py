import copy

import pytest
import torch
from peft import LoHaConfig, LoraConfig, inject_adapter_in_model
from torch import nn

from brickwork import BlockTransformer2DModel, BlockUNet2DModel, set_convbn_mode
from brickwork.gen.convbn import find_convbn_pairs


def network(affine: bool = True, bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias),
        nn.BatchNorm2d(8, affine=affine),
        nn.SiLU(),
        nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=bias), nn.BatchNorm2d(8, eps=1e-3, affine=affine)),
        nn.Conv2d(8, 4, 1),
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3.0)
            if affine:
                nn.init.normal_(module.weight, 1.0)
                nn.init.normal_(module.bias)
    return model


def image(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (model(image()) ** 3).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_tune_has_the_outputs_and_gradients_of_eval(affine, bias):
    model = network(affine, bias)
    assert set_convbn_mode(model, "eval") == ["0", "3.0"]
    model.train()
    outputs, expected = model(image()), gradients(model)
    before = copy.deepcopy(model.state_dict())
    set_convbn_mode(model, "tune")
    model.train()
    torch.testing.assert_close(model(image()), outputs, rtol=1e-10, atol=1e-10)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_tune_keeps_less_for_the_backward_pass():
    def kept(model):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(image(64)).sum()
        assert loss.requires_grad
        return sum(sizes.values())

    model = network()
    set_convbn_mode(model, "eval")
    everything = kept(model)
    set_convbn_mode(model, "tune")
    one_map = 64 * 8 * 70 * 8
    assert everything - kept(model) > 1.5 * one_map


def test_deploy_leaves_convolutions_alone_with_the_same_outputs():
    model = network()
    set_convbn_mode(model, "eval")
    expected = model(image())
    assert set_convbn_mode(model, "deploy") == ["0", "3.0"]
    torch.testing.assert_close(model(image()), expected, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model[0].bias.requires_grad and model[0].weight.requires_grad
    with pytest.raises(ValueError, match="fused already"):
        set_convbn_mode(model, "tune")


def test_modes_last_and_train_gives_torchs_own_way_back():
    model, plain = network(), network()
    for mode in ("eval", "tune", "eval", "tune", "train"):
        set_convbn_mode(model, mode)
    model.train(), plain.train()
    torch.testing.assert_close(model(image()), plain(image()), rtol=0, atol=0)
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert type(model[0]) is nn.Conv2d and type(model[1]) is nn.BatchNorm2d
    assert "plain_class" not in vars(model[1]) and "folded_norm" not in vars(model[0])
    for mode in ("eval", "tune"):
        set_convbn_mode(model, mode)
        statistics = model[1].running_mean.clone()
        model.train()
        model(image())
        assert torch.equal(model[1].running_mean, statistics)


def test_a_copy_folds_its_own_norm():
    model = network()
    set_convbn_mode(model, "tune")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[1].weight.zero_()
    assert twin[0].folded_norm[0] is twin[1]
    assert not torch.allclose(twin(image()), model(image()))


def test_convolutions_with_an_adapter_are_left_alone():
    model = network().float()
    inject_adapter_in_model(LoraConfig(r=2, target_modules="0", init_lora_weights=False), model)
    expected = model.eval()(image().float())
    for mode in ("tune", "deploy"):
        assert set_convbn_mode(model, mode) == ["3.0"]
        torch.testing.assert_close(model.train()(image().float()), expected, rtol=1e-4, atol=1e-5)
        assert isinstance(model[1], nn.BatchNorm2d)


def test_an_adapter_that_has_been_merged_is_folded():
    model = network()
    inject_adapter_in_model(LoraConfig(r=2, target_modules="0", init_lora_weights=False), model)
    expected = model.double().eval()(image())
    model[0].merge()
    model[0] = model[0].get_base_layer()
    for mode in ("tune", "deploy"):
        assert set_convbn_mode(model, mode) == ["0", "3.0"]
        torch.testing.assert_close(model.train()(image()), expected, rtol=1e-9, atol=1e-9)


def test_adapters_come_before_tune():
    model = network()
    expected = model.eval()(image())
    set_convbn_mode(model, "tune")
    with pytest.raises(ValueError, match=r"takes no adapter.*set_convbn_mode\(model, 'eval'\)"):
        inject_adapter_in_model(LoraConfig(r=2, target_modules="0"), model)
    # One that builds no convolutions of its own wraps it all the same; another mode undoes the folding inside.
    inject_adapter_in_model(LoHaConfig(r=2, target_modules="0"), model)
    for mode in ("eval", "tune", "train"):
        assert set_convbn_mode(model.eval(), mode) == (["3.0"] if mode == "tune" else ["0", "3.0"])
        torch.testing.assert_close(model(image().to(expected)), expected, rtol=1e-6, atol=1e-6)


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.wide = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(9)

    def forward(self, hidden_states):
        return self.norm(self.conv(hidden_states))


def test_pairs_of_other_networks_are_named():
    model = Foreign().eval()
    assert find_convbn_pairs(model) == []
    expected = model(image().float())
    assert set_convbn_mode(model, "tune", pairs=[("conv", "norm")]) == ["conv"]
    torch.testing.assert_close(model(image().float()), expected)


@pytest.mark.parametrize(
    ("mode", "pairs", "message"),
    [
        ("fold", None, "`mode` is 'fold'; choose one of train, eval, tune, deploy"),
        ("tune", None, "has no convolution with a BatchNorm behind it"),
        ("tune", [("conv", "wide")], "8 and 9 channels"),
        ("tune", [("norm", "conv")], "BatchNorm2d and Conv2d; give"),
        ("tune", [("conv", "nurm")], "named_modules"),
    ],
)
def test_bad_input(mode, pairs, message):
    model = Foreign()
    with pytest.raises(ValueError, match=message):
        set_convbn_mode(model, mode, pairs)
    assert type(model.conv) is nn.Conv2d


SHARED = {"sample_size": 8, "in_channels": 3, "num_classes": 5, "attention_head_dim": 8, "window_size": 4}
UNET = {"block_out_channels": (8, 16), "layers_per_block": 1}
RESNET = {"block_types": "resnet", "block_options": {"resnet": {"conv_norm": "batch"}}}
NETWORKS = {
    "d-emo": (BlockTransformer2DModel, {"block_types": "i2rmb", "num_layers": 2, "hidden_size": 16}, 2),
    "u-emo": (BlockUNet2DModel, UNET | {"block_types": "i2rmb"}, 5),
    "maxvit": (BlockUNet2DModel, UNET | {"block_types": "maxvit"}, 10),
    "resnet": (BlockUNet2DModel, UNET | RESNET, 5),
}


def denoiser(name: str) -> nn.Module:
    torch.manual_seed(0)
    model_class, config, _ = NETWORKS[name]
    model = model_class(**(SHARED | config))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.15)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model.double().eval()


def estimate(model: nn.Module) -> torch.Tensor:
    return model(image()[..., :9], torch.tensor([1.0, 20.0, 300.0]), class_labels=torch.tensor([0, 3, 5])).sample


def estimate_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = estimate(model)
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_blocks_tune_as_they_evaluate(name):
    model = denoiser(name)
    assert len(set_convbn_mode(model, "eval")) == NETWORKS[name][2]
    expected, gradients = estimate_and_gradients(model.train())
    folded = set_convbn_mode(model, "tune")
    output, folded_gradients = estimate_and_gradients(model.train())
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-9)
    for key, gradient in gradients.items():
        torch.testing.assert_close(folded_gradients[key], gradient, rtol=1e-6, atol=1e-9, msg=key)
    # The folded convolution is what runs: a norm that no longer counts in it would go unnoticed otherwise.
    with torch.no_grad():
        model.get_submodule(folded[0]).folded_norm[0].running_mean += 1.0
        assert not torch.allclose(estimate(model), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_deployed_networks_load_again(name, tmp_path):
    model = denoiser(name)
    expected, parameters = estimate(model), model.num_parameters()
    assert not model.config.convbn_folded
    set_convbn_mode(model, "deploy")
    assert model.config.convbn_folded and model.num_parameters() < parameters
    torch.testing.assert_close(estimate(model), expected, rtol=1e-6, atol=1e-9)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert find_convbn_pairs(again) == []
    torch.testing.assert_close(estimate(again), expected, rtol=1e-6, atol=1e-9)
    assert again.subnets(8, 8)["full"] > 0


def test_some_folded_norms_are_not_all():
    """A configuration says what every block is; a network folded in part, or with an adapter, is none of them."""
    model = denoiser("d-emo")
    set_convbn_mode(model, "deploy", find_convbn_pairs(model)[:1])
    assert not model.config.convbn_folded
    set_convbn_mode(model, "deploy")
    assert model.config.convbn_folded
    model_class, config, _ = NETWORKS["d-emo"]
    with pytest.raises(ValueError, match="`convbn_folded` is True, but no block.*leave it out"):
        model_class(**(SHARED | config | {"block_types": "dit", "convbn_folded": True}))
