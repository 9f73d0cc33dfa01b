"""``overfit``: a codec that learns one picture, after C3 (Kim, Bauer, Theis, Schwarz, Dupont 2023, https://arxiv.org/abs/2312.02753)
and Cool-Chic (Ladune, Philippe, Henry, Clare, Leguay 2023, https://arxiv.org/abs/2212.05458).

    latents: seven grids of one channel, at 1, 1/2 … 1/64 of the picture's size, whole numbers

    grid 1/64 ── ↑2 ─┬─ ↑2 ─┬─ … ─┬─ synthesis at 1/2 ── pixel shuffle ── x_hat
    grid 1/32 ───────┘      │     │
    grid 1/16 ──────────────┘     │                      (upsampling is learned; grid 1 enters by its 2×2 cells)
    grids 1/8 … 1 ────────────────┘

    each grid: 12 causal neighbours and 3×3 of the next coarser grid ── two hidden layers ── location and scale of a Laplace

An encoder fits latents and networks to the picture by gradient descent on λ·255²·MSE + bits; both go into the file. What is
ours: the networks start from ones that were fitted to many photographs (the checkpoint), and a file holds differences from
them, so their bits are few; the latents start from a small analysis network, which a decoder does not need.

    configs      sizes, and what a rate level stands for
    networks     the networks and the analysis, in floating point
    fused        two operations with gradients written by hand: what the descent spends its time in
    fit          the descent for one picture: latents and networks
    moving       its networks, and how they become differences in whole steps
    windows      what of a picture and its grids the descent sees at a time
    adam         its optimiser, for tensors of which a part moves at a time
    soft         rounding that gradients go through, soft at first
    costs        what a window costs: bits of its latents, squared error of what is made of them
    choice       behind it: symbols are moved by one where that is better
    state        where a descent stands, and the file it is resumed from
    weights      the networks as integers: those of the checkpoint at a level, differences from them in a file
    entropy      the grids as symbols, in exact integers, by wavefronts
    runtime      a checkpoint made ready to code
"""
