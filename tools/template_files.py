"""What stands for files that templates name: small models, text encoders and VAEs with random weights, and pictures.

Each takes the place of the host's node of its name, so that a template's graph stays as it is.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections import defaultdict

import comfy.ops
import nodes
import torch
import torch.nn.functional as F
from bayesdiff.host.latents import latent_grid
from comfy.clip_vision import Output
from comfy.ldm.flux.model import FluxParams
from comfy.model_patcher import ModelPatcher
from families import EVERY
from family import Family
from image_families import FLUX, XL
from sounding import SOUNDING

# By the name of a model's file, the first that fits: the family, or "" for one that this host does not know.
FAMILY_OF = [
    (r"minimax_?h3|fasth3", "MiniMax H3"), (r"ltx-?2", "LTX-2"), (r"ltx-video", "LTXV"), (r"qwen_image_2\.1", ""),
    (r"qwen|firered", "Qwen-Image"), (r"z_image", "Z-Image"), (r"krea2", "Krea 2"),
    (r"flux3|moss_image|ming_image|fibo2|marigold", ""), (r"flux-?2", "Flux 2"),
    (r"fill", "Flux Fill"), (r"schnell", "Flux schnell"), (r"ovis", "Ovis-Image"), (r"canny-dev", "Flux"),
    (r"pid_", "PiD"),
    (r"flux", "Flux"), (r"wan_animate_2", "Wan animate 2"), (r"scail_2", "Wan SCAIL 2"), (r"scail", "Wan SCAIL"),
    (r"wan.*animate", "Wan animate"), (r"dancer", "Wan dancer"), (r"humo", "Wan HuMo"), (r"s2v", "Wan sound"),
    (r"vace", "Wan VACE"), (r"fun_control_5B|ti2v_5B|fun_inpaint_5B", "Wan 2.2 5B"),
    (r"wan2\.1_fun_camera", "Wan camera"), (r"wan2\.2_fun_camera", "Wan 2.2 camera"),
    (r"fun_control", "Wan Fun control"),
    (r"fun_inp|i2v.*14B|flf2v|ATI|WanMove|chrono", "Wan image"), (r"causal", "Wan causal"), (r"wan", "Wan"),
    (r"seedvr2", "SeedVR 2"), (r"anima", "Anima"), (r"sd_xl_refiner", "SDXL refiner"), (r"sd_xl|xl_turbo", "SDXL"),
    (r"sd3", "SD3"), (r"lotus", "Lotus-D"), (r"netayume|lumina|newbie", "Lumina 2"), (r"mage_flow", "Mage-Flow"),
    (r"hunyuanvideo1\.5|hunyuan_video_1|capybara", "Hunyuan-Video 1.5"), (r"hunyuan_video", "Hunyuan-Video"),
    (r"ideogram4", "Ideogram 4"), (r"hidream_o1", "HiDream-O1"), (r"hidream", "HiDream"), (r"pixeldit", "PixelDiT"),
    (r"radiance", "Chroma Radiance"), (r"chroma", "Chroma"), (r"ernie", "ERNIE-Image"), (r"lens", "Lens"),
    (r"longcat", "LongCat-Image"), (r"boogu", "Boogu"), (r"kandinsky5.*t2i|kandinsky5.*i2i", "Kandinsky 5 of images"),
    (r"kandinsky5", "Kandinsky 5"), (r"omnigen2", "OmniGen 2"), (r"joy", "JoyImage"),
    (r"svd", "Stable Video Diffusion"), (r"void_pass", "CogVideoX inpaint"),
    (r"cogvideo", "CogVideoX"), (r"v1-5|sd15|512|dreamshaper", "SD1"),
]  # fmt: skip
KNOWN = EVERY | SOUNDING
KNOWN["SDXL"] = dataclasses.replace(  # as wide as the host's noise for pictures as prompts
    KNOWN["SDXL"],
    options=XL | {"adm_in_channels": 1280 + 6 * 256},
    extras={"pooled_output": torch.full((1, 1280), 0.3)},
)
if "yak_mlp" in FluxParams.__dataclass_fields__:
    ovis = dict(vec_in_dim=None, guidance_embed=False, yak_mlp=True, txt_norm=True, txt_ids_dims=[1, 2])
    KNOWN["Ovis-Image"] = dataclasses.replace(KNOWN["Flux"], options=FLUX | ovis, extras={})
# Type of an input that no template gives: the file of the model that a loader of something else is for.
FILE = "MODEL_FILE"
SIDE, FRAMES = 128, 9
# Widths of what an encoder makes of a picture, as a whole and of its patches, and layers and width of what one makes of
# sound, where a family wants its own; else those of CLIP and of a small wav2vec 2.
VISION_WIDTHS = {"Hunyuan-Video 1.5": (768, 1152), "SDXL": (1280, 1280), "Stable Video Diffusion": (16, 1280)}
SOUND_LAYERS = {"Wan sound": (25, 16), "Wan HuMo": (33, 1280)}
# Nodes that add what a file holds to what goes through them. It is left out.
LEFT_OUT = (
    "QwenImageDiffsynthControlnet", "ZImageFunControlnet", "USOStyleReference", "AnimaLLLiteApply", "StyleModelApply",
    "ControlNetApplyAdvanced", "ControlNetApplySD3", "ControlNetInpaintingAliMamaApply", "ImageUpscaleWithModel",
    "FluxKontextImageScale",
)  # fmt: skip
# Loaders of what is left out.
NOT_LOADED = {
    "ControlNetLoader": "CONTROL_NET", "StyleModelLoader": "STYLE_MODEL", "UpscaleModelLoader": "UPSCALE_MODEL",
    "LatentUpscaleModelLoader": "LATENT_UPSCALE_MODEL", "LoadMoGeModel": "MOGE_MODEL", "LoadDA3Model": "DA3_MODEL",
}  # fmt: skip
# Pictures that a node enlarges beyond the first before it encodes them are encoded at the second.
LARGEST, SMALLER = 512, 160


def family_of(file: str) -> str:
    """The family that a model's file is of, "" for none that is known."""
    return next((family for pattern, family in FAMILY_OF if re.search(pattern, file, re.IGNORECASE)), "")


def seed_of(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


class SmallClip:
    """Encodes any text as random tokens of the width that a family wants."""

    def __init__(self, family: Family):
        self.family = family

    def tokenize(self, text, **options) -> dict:
        return defaultdict(list, text=str(text))

    def encode_from_tokens_scheduled(self, tokens, **options) -> list:
        return self.family.conditioning(zlib.crc32(str(tokens.get("text")).encode()))

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        ((cond, extras),) = self.encode_from_tokens_scheduled(tokens)
        pooled = extras.get("pooled_output")
        if return_dict:
            return {"cond": cond} | extras
        return (cond, pooled) if return_pooled else cond

    def clone(self) -> SmallClip:
        return self

    def set_tokenizer_option(self, *option) -> None:
        pass

    def clip_layer(self, number: int) -> None:
        pass


class SmallVae:
    """Averages pixels into cells and mixes their colours into as many channels as a model's latents have."""

    def __init__(self, file: str):
        model = small_model(file)
        latent_format, grid = model.model.latent_format, latent_grid(model)
        self.latent_channels = KNOWN[family_of(file)].latent[1]
        self.video, self.pixels, self.grid = latent_format.latent_dimensions == 3, grid.pixels, grid
        self.latent_dim = latent_format.latent_dimensions
        self.mix = torch.randn(self.latent_channels, 3, generator=seed_of("vae"))
        self.device, self.vae_dtype, self.output_channels = torch.device("cpu"), torch.float32, 3
        self.first_stage_model, self.patcher = torch.nn.Identity(), model
        self.downscale_index_formula = (grid.frames, self.pixels, self.pixels) if self.video else None
        self.downscale_ratio = self.upscale_ratio = self.pixels
        if self.video:
            sides = self.pixels, self.pixels
            self.downscale_ratio = (lambda frames: int(grid.cells_of(frames)[-1]) + 1, *sides)
            self.upscale_ratio = (grid.frames_of, *sides)

    def spacial_compression_encode(self) -> int:
        return self.pixels

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self) -> int | None:
        return self.grid.frames if self.video else None

    def throw_exception_if_invalid(self) -> None:
        pass

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.ndim == 3:  # a sound
            return torch.randn(1, 32, 2, 4, generator=seed_of("sound"))
        clip = self.video and pixels.ndim == 4
        planes = pixels[..., :3].reshape(-1, *pixels.shape[-3:-1], 3).movedim(-1, 1).float()
        largest = max(planes.shape[-2:])
        shrink = SMALLER / largest if largest > LARGEST else 1.0
        sides = [max(1, int(side * shrink) // self.pixels) for side in planes.shape[-2:]]
        cells = torch.einsum("lc,nchw->nlhw", self.mix, F.adaptive_avg_pool2d(planes, sides))
        if not self.video:
            return cells
        cells = cells[None] if clip else cells.unflatten(0, (len(pixels), -1))
        of = self.grid.cells_of(cells.shape[1]).tolist()
        firsts = [of.index(cell) for cell in dict.fromkeys(of)]
        return cells[:, firsts].movedim(1, 2)

    def decode(self, latent: torch.Tensor, **options) -> torch.Tensor:
        back = torch.linalg.pinv(self.mix)
        image = torch.einsum("cl,nl...->nc...", back, latent.float()).clamp(0, 1)
        if self.video:
            image = image[:, :, self.grid.cells_of(self.grid.frames_of(image.shape[2]))]
            image = F.interpolate(image, scale_factor=(1, self.pixels, self.pixels))
        else:
            image = F.interpolate(image, scale_factor=self.pixels)
        return image.movedim(1, -1)

    def decode_tiled(self, latent: torch.Tensor, **options) -> torch.Tensor:
        return self.decode(latent)

    def encode_tiled(self, pixels: torch.Tensor, **options) -> torch.Tensor:
        return self.encode(pixels)


class SmallSoundVae:
    """Makes sounds of the shape that LTX-2 wants."""

    latent_channels, latent_frequency_bins = 8, 16

    @property
    def first_stage_model(self) -> SmallSoundVae:
        return self

    def num_of_latents_from_frames(self, frames: int, rate: float) -> int:
        return frames

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        return torch.randn(1, self.latent_channels, FRAMES, self.latent_frequency_bins, generator=seed_of("sound"))


# Those that were loaded, by their files.
MODELS: dict = {}


def small_model(file: str):
    """A small model of the file's family, whose weights differ from those of other files."""
    if file not in MODELS:
        model = KNOWN[family_of(file)].build()
        generator = seed_of(file)
        with torch.no_grad():
            for parameter in model.model.diffusion_model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        MODELS[file] = model
    return MODELS[file]


def changed(model, file: str, strength: float):
    """A clone with a random change of low rank, as a LoRA makes."""
    generator, patches = seed_of(file), {}
    for name, weight in model.model.diffusion_model.state_dict().items():
        if weight.ndim == 2 and min(weight.shape) >= 8:
            down, up = (
                torch.randn(*size, generator=generator) for size in ((2, weight.shape[1]), (weight.shape[0], 2))
            )
            patches[f"diffusion_model.{name}"] = ("diff", (0.01 * weight.shape[1] ** -0.5 * (up @ down),))
    clone = model.clone()
    clone.add_patches(patches, strength)
    return clone


def picture(name: str, frames: int = 1) -> torch.Tensor:
    coarse = torch.rand(frames, 3, 8, 8, generator=seed_of(name))
    return F.interpolate(coarse, (SIDE, SIDE), mode="bilinear").movedim(1, -1)


class SmallVision:
    """Encodes any picture as random features of the width that a family wants."""

    def __init__(self, family: str):
        self.whole, self.width = VISION_WIDTHS.get(family, (768, 1280))

    def encode_image(self, image, crop=True):
        output, generator = Output(), seed_of("vision")
        output["image_embeds"] = torch.randn(len(image), self.whole, generator=generator)
        output["last_hidden_state"] = torch.randn(len(image), 257, self.width, generator=generator)
        output["penultimate_hidden_states"] = torch.randn(len(image), 257, self.width, generator=generator)
        output["image_sizes"] = [(3, SIDE, SIDE)] * len(image)
        return output


class SmallHearing:
    """Encodes any sound as random features, 50 a second, of the layers and width that a family wants."""

    def __init__(self, family: str):
        self.layers, self.width = SOUND_LAYERS.get(family, (13, 768))

    def encode_audio(self, waveform: torch.Tensor, rate: int) -> dict:
        samples = waveform.shape[-1] * 16000 // rate
        features = torch.randn(self.layers, 1, samples // 320, self.width, generator=seed_of("sound"))
        return {
            "encoded_audio": features[-1], "encoded_audio_all_layers": list(features), "audio_samples": samples
        }  # fmt: skip


def small_talk_patch():
    """InfiniteTalk's patch for a small Wan."""
    from comfy_extras.nodes_model_patch import MultiTalkModelPatch  # which old hosts lack

    cpu, options = torch.device("cpu"), KNOWN["Wan image"].options
    patch = MultiTalkModelPatch(
        in_dim=options["dim"], intermediate_dim=16, out_dim=16, num_layers=1, operations=comfy.ops.manual_cast
    )
    attention = patch.blocks[0].audio_cross_attn
    attention.num_heads, attention.head_dim = options["num_heads"], options["dim"] // options["num_heads"]
    attention.rope_1d.head_dim = attention.head_dim
    generator = seed_of("patch")
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return ModelPatcher(patch, load_device=cpu, offload_device=cpu)


def stand_in(outputs: tuple[str, ...], make, **inputs) -> type:
    """A node class that makes its outputs from the inputs that it declares; all are optional."""

    class StandIn:
        RETURN_TYPES, FUNCTION, CATEGORY = outputs, "run", "test"

        @classmethod
        def INPUT_TYPES(cls) -> dict:
            return {"required": {}, "optional": {name: (kind,) for name, kind in inputs.items()}}

        @classmethod
        def VALIDATE_INPUTS(cls, **given):
            return True

        def run(self, **given):
            return make(**given)

    return StandIn


def sound() -> dict:
    return {"waveform": 0.1 * torch.randn(1, 2, 16000, generator=seed_of("sound")), "sample_rate": 16000}


def passed_on(kind: str) -> type:
    """For a node of the host: each of its outputs is the input of its type."""
    node, inputs = nodes.NODE_CLASS_MAPPINGS[kind], declared(kind)
    outputs = tuple(map(str, node.RETURN_TYPES))

    def pass_on(**given) -> tuple:
        left = list(inputs)
        found = []
        for output in outputs:
            name = next(name for name in left if inputs[name] == output)
            left.remove(name)
            found.append(given[name])
        return tuple(found)

    return stand_in(outputs, pass_on, **inputs)


def declared(kind: str) -> dict:
    """Types of a node's inputs, by name."""
    inputs = nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES() if kind in nodes.NODE_CLASS_MAPPINGS else {}
    return {name: spec[0] for part in ("required", "optional") for name, spec in inputs.get(part, {}).items()}


def clip_of(model_file: str, **_):
    return (SmallClip(KNOWN[family_of(model_file)]),)


def vae_of(model_file: str, vae_name: str = "") -> tuple:
    return (SmallSoundVae() if "audio" in vae_name else SmallVae(model_file),)


def enlarge(samples: dict) -> tuple[dict]:
    """A clip of twice the height and width."""
    latent = samples["samples"]
    sides = (latent.shape[2], *(2 * side for side in latent.shape[3:]))
    return (samples | {"samples": F.interpolate(latent, sides, mode="trilinear")},)


def register() -> None:
    """Put all of them in the place of the host's nodes."""
    text = "STRING"
    lora = dict(model="MODEL", clip="CLIP", lora_name=text, strength_model="FLOAT")

    def apply_lora(model=None, clip=None, lora_name="", strength_model=1.0):
        return changed(model, lora_name, strength_model), clip

    clips = "CLIPLoader DualCLIPLoader TripleCLIPLoader QuadrupleCLIPLoader LTXAVTextEncoderLoader".split()
    stand_ins = {name: stand_in(("CLIP",), clip_of, model_file=FILE) for name in clips} | {
        "UNETLoader": stand_in(("MODEL",), lambda unet_name: (small_model(unet_name),), unet_name=text),
        "CheckpointLoaderSimple": stand_in(
            ("MODEL", "CLIP", "VAE"),
            lambda ckpt_name: (small_model(ckpt_name), *clip_of(ckpt_name), SmallVae(ckpt_name)),
            ckpt_name=text,
        ),
        "ImageOnlyCheckpointLoader": stand_in(
            ("MODEL", "CLIP_VISION", "VAE"),
            lambda ckpt_name: (small_model(ckpt_name), SmallVision(family_of(ckpt_name)), SmallVae(ckpt_name)),
            ckpt_name=text,
        ),
        "VAELoader": stand_in(("VAE",), vae_of, vae_name=text, model_file=FILE),
        "CLIPVisionLoader": stand_in(
            ("CLIP_VISION",), lambda model_file: (SmallVision(family_of(model_file)),), model_file=FILE
        ),
        "AudioEncoderLoader": stand_in(
            ("AUDIO_ENCODER",), lambda model_file: (SmallHearing(family_of(model_file)),), model_file=FILE
        ),
        "LoraLoader": stand_in(("MODEL", "CLIP"), apply_lora, **lora),
        "LoraLoaderModelOnly": stand_in(("MODEL",), lambda **given: apply_lora(**given)[:1], **lora),
        "LoadImage": stand_in(
            ("IMAGE", "MASK"), lambda image="": (picture(str(image)), (picture(str(image))[..., 0] > 0.5).float()),
            image=text,
        ),
        "LoadImageMask": stand_in(("MASK",), lambda: ((picture("mask")[..., 0] > 0.5).float(),)),
        "Painter": stand_in(("IMAGE", "MASK"), lambda: (picture("paint"), (picture("paint")[..., 0] > 0.5).float())),
        "LoadAudio": stand_in(("AUDIO",), lambda: (sound(),)),
        "GetVideoComponents": stand_in(("IMAGE", "AUDIO", "FLOAT"), lambda: (picture("clip", FRAMES), sound(), 16.0)),
        # What a network sees in a picture, its depth or its objects, is the picture itself.
        "MoGeInference": stand_in(("MOGE_GEOMETRY",), lambda image: (image,), image="IMAGE"),
        "MoGeRender": stand_in(("IMAGE",), lambda moge_geometry: (moge_geometry,), moge_geometry="MOGE_GEOMETRY"),
        "DA3Inference": stand_in(("DA3_GEOMETRY",), lambda image: (image,), image="IMAGE"),
        "DA3Render": stand_in(("IMAGE",), lambda da3_geometry: (da3_geometry,), da3_geometry="DA3_GEOMETRY"),
        "SAM3_Detect": stand_in(
            ("MASK", "BOUNDING_BOX"), lambda image: ((image[..., 0] > 0.5).float(), None), image="IMAGE"
        ),
        "SAM3_VideoTrack": stand_in(("SAM3_TRACK_DATA",), lambda images: (images,), images="IMAGE"),
        "SCAIL2ColoredMask": stand_in(
            ("IMAGE", "IMAGE"),
            lambda driving_track_data, ref_track_data=None: (driving_track_data, ref_track_data),
            driving_track_data="SAM3_TRACK_DATA", ref_track_data="SAM3_TRACK_DATA",
        ),
        "VOIDWarpedNoise": stand_in(
            ("LATENT",), lambda: ({"samples": torch.randn(1, 16, 2, 16, 16, generator=seed_of("flow"))},)
        ),
        "ModelPatchLoader": stand_in(
            ("MODEL_PATCH",), lambda name: (small_talk_patch() if "talk" in name.lower() else None,), name=text
        ),
        "LTXVAudioVAELoader": stand_in(("VAE",), lambda: (SmallSoundVae(),)),
        "LTXVLatentUpsampler": stand_in(("LATENT",), enlarge, samples="LATENT"),
    }  # fmt: skip
    stand_ins |= {name: stand_in((kind,), lambda: (None,)) for name, kind in NOT_LOADED.items()}
    stand_ins |= {name: passed_on(name) for name in LEFT_OUT if name in nodes.NODE_CLASS_MAPPINGS}
    nodes.NODE_CLASS_MAPPINGS |= {name: node for name, node in stand_ins.items() if name in nodes.NODE_CLASS_MAPPINGS}
