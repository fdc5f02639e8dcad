"""Stand-in for the published repository: DDIM, with what is known to be narrow about it: its tables go to "cuda", and not every step count works."""
import numpy as np
import torch
from tqdm import tqdm


class DDIMSampler:
    def __init__(self, model, schedule="linear", **kwargs):
        self.model, self.schedule, self.ddpm_num_timesteps = model, schedule, model.num_timesteps

    def register_buffer(self, name, attr):
        setattr(self, name, attr.to(torch.device("cuda")) if isinstance(attr, torch.Tensor) else attr)

    def make_schedule(self, ddim_num_steps, ddim_discretize="uniform", ddim_eta=0.0, verbose=True):
        assert ddim_discretize == "uniform"
        T = self.ddpm_num_timesteps
        self.ddim_timesteps = np.arange(0, T, T // ddim_num_steps) + 1
        table = self.model.alphas_cumprod.cpu().double().numpy()
        alphas = table[self.ddim_timesteps]  # an IndexError where the last step is T
        before = np.concatenate([table[:1], table[self.ddim_timesteps[:-1]]])
        sigmas = ddim_eta * np.sqrt((1 - before) / (1 - alphas) * (1 - alphas / before))
        for name, values in (("ddim_alphas", alphas), ("ddim_alphas_prev", before), ("ddim_sigmas", sigmas)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    @torch.no_grad()
    def sample(
        self, S, batch_size, shape, conditioning=None, callback=None, normals_sequence=None, img_callback=None, quantize_x0=False, eta=0.0, mask=None,
        x0=None, temperature=1.0, noise_dropout=0.0, score_corrector=None, corrector_kwargs=None, verbose=True, x_T=None, log_every_t=100,
        unconditional_guidance_scale=1.0, unconditional_conditioning=None, **kwargs
    ):  # fmt: skip
        self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        device = self.model.betas.device
        x = torch.randn((batch_size, *shape), device=device) if x_T is None else x_T
        seen = {"x_inter": [x], "pred_x0": [x]}
        for index in tqdm(reversed(range(len(self.ddim_timesteps))), total=len(self.ddim_timesteps), disable=not verbose):
            t = torch.full((batch_size,), int(self.ddim_timesteps[index]), device=device, dtype=torch.long)
            x, x0_hat = self._step(x, conditioning, t, index, unconditional_guidance_scale, unconditional_conditioning)
            if index % log_every_t == 0 or index == len(self.ddim_timesteps) - 1:
                seen["x_inter"].append(x)
                seen["pred_x0"].append(x0_hat)
        return x, seen

    def _step(self, x, c, t, index, scale, unconditional):
        if unconditional is None or scale == 1.0:
            eps = self.model.apply_model(x, t, c)
        else:
            without, given = self.model.apply_model(torch.cat([x] * 2), torch.cat([t] * 2), torch.cat([unconditional, c])).chunk(2)
            eps = without + scale * (given - without)
        a, before, sigma = self.ddim_alphas[index], self.ddim_alphas_prev[index], self.ddim_sigmas[index]
        x0_hat = (x - (1 - a).sqrt() * eps) / a.sqrt()
        return before.sqrt() * x0_hat + (1 - before - sigma**2).sqrt() * eps + sigma * torch.randn_like(x), x0_hat
