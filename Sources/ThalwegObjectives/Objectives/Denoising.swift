import Glibc
import ThalwegCore

/// Stein's unbiased risk estimate of a denoiser, with one random probe for its divergence.
///
///     value = ‖f − y‖²/n − σ² + 2σ²/(n·ε)·b·(f2 − f)
///
/// f is what the denoiser makes of the noisy y, f2 what it makes of y + ε·b; b are random signs, or normal numbers. All
/// have the same shape, of n elements.
/// Source   Ramani, Blu and Unser, 2008.
struct SURE: Objective {
  static let method = Method(
    "sure", .objective, "Stein's unbiased risk estimate of a denoiser, by one random probe.",
    rule: """
      value = |f - y|^2/n - sigma^2 + 2*sigma^2/(n*eps)*b.(f2 - f), f of y and f2 of y + eps*b
      gradients for f: 2*(f - y)/n - 2*sigma^2/(n*eps)*b;  for f2: 2*sigma^2/(n*eps)*b
      """,
    source: "Ramani, Blu, Unser, 2008",
    parameters: [
      .number("sigma", nil, .above(0), "deviation of the noise"), .number("eps", 1e-3, .above(0), "size of the probe"),
    ],
    inputs: [
      .variable("f", "...", "the denoised y"), .variable("f2", "...", "the denoised y + eps*b"),
      .constant("y", "...", "noisy data"), .constant("b", "...", "the probe, of random signs or normal numbers"),
    ])
  let variance: Double, eps: Double
  init(_ h: Hyper) {
    let sigma: Double = h.sigma
    (variance, eps) = (sigma * sigma, h.eps)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["f"], f2 = try x["f2"], y = try x["y"], b = try x["b"], n = x.sizes.samples
    let g = try cache?.keep("f", n, T.self), g2 = try cache?.keep("f2", n, T.self)
    let weight = 1 / Double(n), factor = 2 * variance * weight / eps
    let sum = Rows.sum(n, work: 8) { i in
      let apart = Double(f[i]) - Double(y[i]), probe = factor * Double(b[i])
      g?[i] = T(2 * weight * apart - probe)
      g2?[i] = T(probe)
      return weight * apart * apart + probe * (Double(f2[i]) - Double(f[i]))
    }
    return sum - variance
  }
}

/// The loss of an amortised residual denoiser, which learns the score of the data.
///
///     q = min((step + 1)/anneal_steps, 1)     σ = σ_max·(1 − q) + σ_min·q     value = mean over rows of ‖u + σ·R‖²
///
/// u are the normal numbers in y + σ·u, r is what the host's network makes of that; both (n, d).
/// Errors   TW_ERROR_RANGE: a step below 0.
/// Source   Lim et al., 2020, arXiv:2006.05164; Kim and Ye, 2021, arXiv:2106.07009.
struct ARDAE: Objective {
  static let method = Method(
    "ar_dae", .objective, "The loss of a residual denoiser, which learns the score of the data.",
    rule: """
      q = min((step + 1)/anneal_steps, 1), sigma = sigma_max*(1 - q) + sigma_min*q
      value = mean over rows of |u + sigma*r|^2;  gradient for r: 2*sigma*(u + sigma*r)/n
      """,
    source: "Lim et al., 2020, arXiv:2006.05164; Kim, Ye, 2021, arXiv:2106.07009",
    parameters: [
      .number("sigma_max", 0.1, .above(0), "first deviation, for data in [0, 1]"),
      .number("sigma_min", 0.001, .above(0), "last deviation"),
      .integer("anneal_steps", 22000, .atLeast(1), "steps from one to the other"),
    ],
    inputs: [
      .variable("r", "n, d", "what the network makes of y + sigma*u"), .constant("u", "n, d", "normal numbers"),
      .integer("step", "", "the running step, from 0 on"),
    ])
  let high: Double, low: Double, steps: Double
  init(_ h: Hyper) { (high, low, steps) = (h.sigma_max, h.sigma_min, h.anneal_steps) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let r = try x["r"], u = try x["u"], n = x.sizes["n"], d = x.sizes["d"], step = try x.integers("step").pointee
    guard step >= 0 else { throw Failure(Status.range, "`step` must be at least 0, got \(step)") }
    let q = min((Double(step) + 1) / steps, 1), sigma = high * (1 - q) + low * q
    let g = try cache?.keep("r", n * d, T.self), weight = 1 / Double(n)
    return weight
      * Rows.sum(n * d, work: 4) { k in
        let e = Double(u[k]) + sigma * Double(r[k])
        g?[k] = T(2 * weight * sigma * e)
        return e * e
      }
  }
}

/// Negative-aware fine-tuning of a flow by rewards, on the forward process.
///
///     r = clip(clip(A, ±c)/(2c) + ½, 0, 1)     v⁺ = β·v + (1 − β)·v_old     v⁻ = (1 + β)·v_old − β·v
///     e± = x_t − t·v± − x₀     w± = max(mean |e±|, 10⁻⁵) of each sample, held constant; 1 unless adaptive
///     value = c/β·mean [r·mean(e⁺²/w⁺) + (1 − r)·mean(e⁻²/w⁻)] + λ·mean (v − v_ref)²
///
/// v, v_old, x_t, x0 and v_ref are (B, D), t and advantage are (B,); x_t = (1 − t)·x₀ + t·noise. Without v_ref the last
/// term is left out. The moving average of the old policy is the host's.
/// Source   Zheng et al., 2025, arXiv:2509.16117.
struct DiffusionNFT: Objective {
  static let method = Method(
    "diffusion_nft", .objective, "Negative-aware fine-tuning of a flow by rewards, on the forward process.",
    rule: """
      r = clip(clip(A, -c, c)/(2c) + 1/2, 0, 1);  v+ = beta*v + (1 - beta)*v_old, v- = (1 + beta)*v_old - beta*v
      e = x_t - t*v - x0 of both, w = mean |e| held constant (adaptive)
      value = c/beta*mean (r*mean(e+^2/w+) + (1 - r)*mean(e-^2/w-)) + kl_weight*mean (v - v_ref)^2
      """,
    source: "Zheng et al., 2025, arXiv:2509.16117",
    parameters: [
      .number("beta", 1, .between(0, 1, lowOpen: true, highOpen: false), "mixing of new and old velocity"),
      .number("adv_clip_max", 5, .above(0), "c, largest advantage"),
      .flag("adaptive", true, "divide by the mean absolute error of each sample"),
      .number("kl_weight", 1e-4, .atLeast(0), "weight of the distance to v_ref"),
    ],
    inputs: [
      .variable("v", "B, D", "velocities"), .constant("v_old", "B, D", "velocities of the old policy"),
      .constant("x_t", "B, D", "noisy samples"), .constant("x0", "B, D", "clean samples"),
      .constant("t", "B", "times, 0 to 1"), .constant("advantage", "B", "advantages"),
      .constant("v_ref", "B, D", "velocities of a reference", optional: true),
    ])
  let beta: Double, clip: Double, adaptive: Bool, distance: Double
  init(_ h: Hyper) { (beta, clip, adaptive, distance) = (h.beta, h.adv_clip_max, h.adaptive, h.kl_weight) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let v = try x["v"], old = try x["v_old"], noisy = try x["x_t"], clean = try x["x0"], times = try x["t"]
    let advantage = try x["advantage"], reference = x.optional("v_ref"), rows = x.sizes["B"], d = x.sizes["D"]
    let g = try cache?.keep("v", rows * d, T.self), weight = 1 / (Double(rows) * Double(d))
    return Rows.sum(rows, work: 32 * d) { i in
      let t = Double(times[i]), a = larger(-clip, smaller(clip, Double(advantage[i])))
      let r = larger(0, smaller(1, a / (2 * clip) + 0.5))
      func errors(_ k: Int) -> (plus: Double, minus: Double) {
        let new = Double(v[k]), before = Double(old[k]), rest = Double(noisy[k]) - Double(clean[k])
        return (
          rest - t * (beta * new + (1 - beta) * before), rest - t * ((1 + beta) * before - beta * new)
        )
      }
      var plus = 1.0, minus = 1.0
      if adaptive {
        (plus, minus) = (0, 0)
        for k in (i * d)..<((i + 1) * d) {
          let e = errors(k)
          plus += abs(e.plus) / Double(d)
          minus += abs(e.minus) / Double(d)
        }
        (plus, minus) = (larger(plus, 1e-5), larger(minus, 1e-5))
      }
      var sum = 0.0
      let up = clip / beta * r / plus, down = clip / beta * (1 - r) / minus
      for k in (i * d)..<((i + 1) * d) {
        let e = errors(k), apart = reference.map { Double(v[k]) - Double($0[k]) } ?? 0
        sum += up * e.plus * e.plus + down * e.minus * e.minus + distance * apart * apart
        g?[k] = T(weight * 2 * (beta * t * (down * e.minus - up * e.plus) + distance * apart))
      }
      return weight * sum
    }
  }
}
