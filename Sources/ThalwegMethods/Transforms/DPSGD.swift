import Glibc
import ThalwegCore

/// Differentially private gradients: every sample's gradient is clipped, the sum gets Gaussian noise.
///
///     flat:       f_i = min(1, C/(‖g_i‖ + ε)), norms over all tensors      per_layer: f_il = min(1, C_l/(‖g_il‖ + ε))
///     auto:       f_i = C/(‖g_i‖ + γ)
///     g = (Σ_i f_i·g_i + σ·C_tot·z)/expected_batch_size,  z ~ N(0, 1),  C_tot = C, or √(Σ C_l²)
///
/// The host answers with the gradients of samples, in `micro_batches` parts of one logical batch; the sum is released
/// once. A batch without samples (Poisson sampling) releases noise alone. Any method may follow.
/// State    the sum, within a step; how many sums were released, which tells the draws apart.
/// Numbers  `samples` of the last batch, `unclipped` of them, and `dropped`: those whose norm is not finite count as 0.
/// Differs  the draws are the library's seeded ones, which make runs repeatable but are not cryptographically safe: for
///          a guarantee against an adversary, seed from a safe source and keep the seed secret. `clip` of per_layer is
///          one number, or a list in the order of binding.
/// Source   Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, 2016, arXiv:1607.00133; Bu, Wang, Zha, Karypis,
///          2022, arXiv:2206.07136 (auto).
struct DPSGD: Source {
  static let method = Method(
    "dp_sgd", .transform, "Differentially private gradients: clips every sample's gradient and adds noise to the sum.",
    rule: """
      flat: f_i = min(1, clip/(|g_i| + eps));  per_layer: the same by tensor;  auto: f_i = clip/(|g_i| + gamma)
      g = (sum_i f_i*g_i + noise_multiplier*C*z)/expected_batch_size;  C = clip, or sqrt(sum clip_l^2)
      """,
    source: "Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, 2016, arXiv:1607.00133",
    parameters: [
      .number("noise_multiplier", nil, .atLeast(0), "sigma: noise over the clip norm").forAll,
      .number("expected_batch_size", nil, .above(0), "divisor: the expected size of the logical batch").forAll,
      Parameter.number("clip", 1, .above(0), "clip norm C; or one for each tensor (per_layer)").orList().fixed,
      .choice("mode", ["flat", "per_layer", "auto"], "how samples are clipped", live: false),
      .eps(1e-6, "added to the norm").forAll,
      .number("gamma", 0.01, .atLeast(0), "added to the norm (auto); with 0 a sample of zeros counts nothing").forAll,
      .integer("micro_batches", 1, .atLeast(1), "parts of the logical batch", live: false),
    ],
    requests: "sample_gradients",
    validate: { (h) throws(Failure) in
      guard h.list("clip").isEmpty || h.is("mode", "per_layer") else {
        throw Failure(Status.range, "dp_sgd: a list of `clip` norms needs mode=per_layer")
      }
    })

  let slots = PrivateSum.slots
  let scalars = PrivateSum.scalars
  let takesGradients = false
  let opens = true
  private let mode: Mode, parts: Int, clips: [Double], listed: Bool
  private enum Mode { case flat, perLayer, auto }
  init(_ h: Hyper) {
    mode = h.is("mode", "auto") ? .auto : h.is("mode", "per_layer") ? .perLayer : .flat
    (parts, listed) = (h.integer("micro_batches"), !h.list("clip").isEmpty)
    clips = listed ? h.list("clip") : [h.clip]
  }
  func most(_ tensors: Int) -> Int { parts }
  let kinds = [Request.Kind.sampleGradients]
  func opening(_ io: SourceIO) -> Ask? { PrivateSum.ask(0, parts) }

  func take(_ samples: Samples, _ phase: Int, _ io: SourceIO) throws(Failure) {
    let h = io.hyper, eps: Double = h.eps, gamma: Double = h.gamma
    let layer = mode == .perLayer && listed
    guard !layer || clips.count == io.count else {
      throw Failure(
        Status.count,
        "dp_sgd: `clip` has \(clips.count) numbers, there are \(io.count) tensors: one for each is expected, or a "
          + "number for all")
    }
    PrivateSum.take(samples, io, layers: mode == .perLayer) { [mode, clips] norm, tensor in
      let clip = layer ? clips[tensor] : clips[0]
      if mode == .auto { return norm + gamma > 0 ? clip / (norm + gamma) : 0 }
      return min(1, clip / (norm + eps))
    }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    PrivateSum.add(phase, io)
    if phase + 1 < parts { return .ask(PrivateSum.ask(phase + 1, parts)) }
    let h = io.hyper, tensors = io.tensors { _ in true }
    let squares = tensors.reduce(0.0) { $0 + (listed ? clips[$1] * clips[$1] : clips[0] * clips[0]) }
    let total = mode == .perLayer ? squares.squareRoot() : clips[0]
    let noise: Double = h.noise_multiplier, size: Double = h.expected_batch_size
    return PrivateSum.release(io, noise: noise * total, over: size)
  }
}

/// Per-sample normalisation, a name for `dp_sgd(mode=auto)`: AUTO-S, and AUTO-V with gamma=0.
///
///     f_i = C/(‖g_i‖ + γ), norms over all tensors;   g = (Σ_i f_i·g_i + σ·C·z)/expected_batch_size
///
/// Every contribution is shorter than C (AUTO-V: as long); C drops into the step size. A sample of zeros counts
/// nothing.
/// Source   Bu, Wang, Zha, Karypis, 2022, arXiv:2206.07136.
enum AutomaticClip: Listed {
  private static let shared = ["noise_multiplier", "expected_batch_size", "clip", "gamma", "micro_batches"]
  static let registered = alias(
    Method(
      "automatic_clip", .transform, "Per-sample normalisation of gradients, with noise on their sum.",
      rule: "f_i = clip/(|g_i| + gamma);  g = (sum_i f_i*g_i + noise_multiplier*clip*z)/expected_batch_size",
      source: "Bu, Wang, Zha, Karypis, 2022, arXiv:2206.07136",
      parameters: DPSGD.method.parameters.filter { shared.contains($0.name) }.map { p in
        var p = p
        p.takesList = false
        return p
      }, slots: DPSGD.method.slots, requests: "sample_gradients")
  ) { h in
    var node = h.node("dp_sgd", DPSGD.method.parameters.filter { shared.contains($0.name) })
    let mode = ValueNode.word(StageNode(name: "auto", arguments: [], position: 0))
    node.arguments.append(ArgumentNode(name: "mode", value: mode, position: 0))
    return [node]
  }
}

/// DP-SGD whose clip norm follows a quantile of the samples' norms.
///
///     f_i = min(1, C/(‖g_i‖ + ε));   g = (Σ_i f_i·g_i + σ'·C·z)/expected_batch_size
///     b = (n_unclipped + count_std·z')/n;   C ← clamp(C·exp(−lr·(b − q)), min, max);   σ' = (σ⁻² − (2·count_std)⁻²)^−½
///
/// State    C; else as `dp_sgd`. A batch without samples leaves C as it is.
/// Errors   TW_ERROR_RANGE unless σ < 2·count_std.
/// Source   Andrew, Thakkar, McMahan, Ramaswamy, 2021, arXiv:1905.03871.
struct DPAdaptiveClip: Source {
  static let method = Method(
    "dp_adaptive_clip", .transform, "DP-SGD whose clip norm follows a quantile of the samples' norms.",
    rule: """
      f_i = min(1, C/(|g_i| + eps));  g = (sum_i f_i*g_i + s*C*z)/expected_batch_size
      b = (unclipped + count_std*z')/n;  C <- clamp(C*exp(-lr*(b - target_quantile)), min, max)
      s = (noise_multiplier^-2 - (2*count_std)^-2)^(-1/2)
      """,
    source: "Andrew, Thakkar, McMahan, Ramaswamy, 2021, arXiv:1905.03871",
    parameters: [
      .number("noise_multiplier", nil, .atLeast(0), "sigma of the whole mechanism").forAll,
      .number("expected_batch_size", nil, .above(0), "divisor: the expected size of the logical batch").forAll,
      .number("clip0", 1, .above(0), "first clip norm").fixed,
      .number("target_quantile", 0.5, .within(0, 1), "share of samples that shall stay unclipped").forAll,
      .number("lr", 0.2, .above(0), "step of the logarithm of C").forAll,
      .number("count_std", 1, .above(0), "noise on the count of unclipped samples").forAll,
      .number("min", 1e-8, .above(0), "smallest C").forAll, .number("max", 1e8, .above(0), "largest C").forAll,
      .eps(1e-6, "added to the norm").forAll,
      .integer("micro_batches", 1, .atLeast(1), "parts of the logical batch", live: false),
    ],
    requests: "sample_gradients",
    validate: { (h) throws(Failure) in
      let sigma: Double = h.noise_multiplier, count: Double = h.count_std, low: Double = h.min, high: Double = h.max
      guard sigma.isNaN || count.isNaN || sigma < 2 * count else {
        throw Failure(
          Status.range, "dp_adaptive_clip: `noise_multiplier` must be below 2*count_std, got \(text(sigma))")
      }
      guard low.isNaN || high.isNaN || low <= high else {
        throw Failure(Status.range, "dp_adaptive_clip: `min` must be at most `max`, got \(text(low))")
      }
    })

  let slots = PrivateSum.slots
  let scalars: [Scalar]
  let takesGradients = false
  let opens = true
  private let parts: Int, clip: Int
  init(_ h: Hyper) {
    parts = h.integer("micro_batches")
    (scalars, clip) = (PrivateSum.scalars + [Scalar("clip", h.clip0)], PrivateSum.scalars.count)
  }
  func most(_ tensors: Int) -> Int { parts }
  let kinds = [Request.Kind.sampleGradients]
  func opening(_ io: SourceIO) -> Ask? { PrivateSum.ask(0, parts) }

  func take(_ samples: Samples, _ phase: Int, _ io: SourceIO) throws(Failure) {
    let bound = io.scalar(clip), eps: Double = io.hyper.eps
    PrivateSum.take(samples, io, layers: false) { norm, _ in min(1, bound / (norm + eps)) }
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    PrivateSum.add(phase, io)
    if phase + 1 < parts { return .ask(PrivateSum.ask(phase + 1, parts)) }
    let h = io.hyper, sigma: Double = h.noise_multiplier, spread: Double = h.count_std, bound = io.scalar(clip)
    let noise = sigma == 0 ? 0 : 1 / (1 / (sigma * sigma) - 1 / (4 * spread * spread)).squareRoot()
    let (n, unclipped) = PrivateSum.counts(io)
    if n > 0 {
      let key = Random.key(seed: io.seed, stream: io.stream, step: PrivateSum.releases(io), tensor: .max)
      let share = (unclipped + spread * Random.normal(key, 0)) / n
      let rate: Double = h.lr, quantile: Double = h.target_quantile, low: Double = h.min, high: Double = h.max
      io.setScalar(clip, min(max(bound * exp(-rate * (share - quantile)), low), high))
    }
    return PrivateSum.release(io, noise: noise * bound, over: h.expected_batch_size)
  }
}

/// What both have in common: a sum of clipped gradients over the parts of a batch, released once with noise.
private enum PrivateSum {
  static let slots = [
    Slot.temporary("sum", "clipped gradients of the parts so far"), Slot.temporary("part", "those of the present part"),
  ]
  /// The counts of the last batch; those of the present part; how many sums were released.
  static let scalars = ["samples", "unclipped", "dropped", "n", "free", "lost", "releases"].map { Scalar($0) }

  static func ask(_ part: Int, _ parts: Int) -> Ask {
    Ask(.sampleGradients, index: part, count: parts, freshSample: part > 0)
  }
  static func counts(_ io: SourceIO) -> (Double, Double) { (io.scalar(0), io.scalar(1)) }
  static func releases(_ io: SourceIO) -> UInt64 { UInt64(io.counter(6)) }

  /// The part's clipped sum; `factor` is that of a norm, over all tensors or (layers) of one.
  static func take(
    _ samples: Samples, _ io: SourceIO, layers: Bool, _ factor: (Double, _ tensor: Int) -> Double
  ) {
    var free = 0, lost = 0
    io.combine(samples, into: 1) { _, squares in
      let all = Samples.total(squares)
      guard all.isFinite else {
        lost += 1
        return squares.map { _ in 0 }
      }
      let factors = samples.tensors.enumerated().map { k, i in factor((layers ? squares[k] : all).squareRoot(), i) }
      if factors.allSatisfy({ $0 >= 1 }) { free += 1 }
      return factors
    }
    io.setScalar(3, Double(samples.count))
    io.setScalar(4, Double(free))
    io.setScalar(5, Double(lost))
  }

  private struct Add: ElementOperation {
    let first: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = first ? s[1] : s[0] + s[1]
    }
  }
  /// The part joins the batch.
  static func add(_ phase: Int, _ io: SourceIO) {
    io.change(Add(first: phase == 0), slots: [0, 1], parameters: false)
    for k in 0..<3 { io.setScalar(k, (phase == 0 ? 0 : io.scalar(k)) + io.scalar(3 + k)) }
  }

  private struct Release: ElementOperation {
    let noise, share: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = noise == 0 ? share * s[0] : share * (s[0] + noise * s[1])
    }
  }
  static func release(_ io: SourceIO, noise: Double, over size: Double) -> Move {
    let number = io.counter(6)
    if noise != 0 { io.draw(1, signs: false, number: number) }
    io.setScalar(6, Double(number + 1))
    return .update(io.operation(Release(noise: noise, share: 1 / size), slots: [0, 1]))
  }
}
