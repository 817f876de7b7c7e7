import ThalwegCore

/// The pull of SR-STE: what an N:M mask hides is drawn to zero.
///
///     g ← g + decay·(1 − mask(θ))·θ,   the mask of `nm_sparsity`
///
/// For hosts that mask the weights in their own forward pass and take the gradient there. `nm_sparsity` has the mask
/// and the pull together.
///
/// State    none.
/// Errors   as of `nm_sparsity`.
/// Source   Zhou et al., 2021, arXiv:2102.04010.
struct SRSTE: WholeRule {
  static let method = Method(
    "sr_ste", .transform, "The pull of SR-STE: what an N:M mask hides is drawn to zero.",
    rule: "g <- g + decay*(1 - mask(theta))*theta: of every m entries along the axis the n largest are the mask",
    source: "Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, 2021, arXiv:2102.04010",
    parameters: NMSparsity.pattern + [.number("decay", 2e-4, .atLeast(0), "pull of the masked entries to zero")],
    validate: { (h) throws(Failure) in try NMSparsity.check(h, "sr_ste") })
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try NMSparsity.accepts(h, shape, "sr_ste") }

  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { NMSparsity.grain(h, shape) }

  let mask: NMSparsity, decay: Double
  init(_ h: Hyper, _ c: StepContext) { (mask, decay) = (NMSparsity(h, c), h.decay) }

  func apply<T: Real>(_ t: Whole<T>) {
    mask.pull(t, T(decay))
  }
}
