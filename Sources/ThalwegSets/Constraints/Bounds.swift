import ThalwegCore

/// Registers a set of entries whose hyper-parameters are plain numbers (the form with lists is never taken).
/// Where the gradient is not zero the far end of [−b, b], elsewhere 0; NaN stays.
@inline(__always) private func farEnd<L: Lane>(_ g: L, _ b: Double) -> L {
  let zero = L(0)
  return L.select(L.less(zero, g), L(-b), L.select(L.less(g, zero), L(b), L.select(L.equal(g, zero), zero, g)))
}

/// Entries that are not negative.
///
///     project = max(w, 0)     argmin⟨g, u⟩: 0, and unbounded where g < 0
///
/// Source   textbook; for convex nets: Fang, Buchanan and Sulam, 2024, arXiv:2310.14344.
struct NonNegative: ElementConstraint {
  static let method = Method(
    "non_negative", .constraint, "Entries that are not negative.",
    rule: "project = max(w, 0);  argmin <g, u> = 0, unbounded where g < 0", source: "textbook")
  init(_ h: Hyper) {}
  @inline(__always) func project<L: Lane>(_ w: L) -> L { L.max(w, 0) }
  var folds: Folds? { Folds(.clip(0, .infinity)) }
  @inline(__always) func minimise<L: Lane>(_ g: L) -> L {
    L.select(L.less(g, L(0)), L(.infinity), L.select(L.equal(g, g), L(0), g))
  }
}

/// Every entry within ±clip: the weights of a Wasserstein critic, biases included, after every step.
///
///     project = clip(w, −c, c)     argmin⟨g, u⟩ = −c·sign(g)
///
/// Source   Arjovsky, Chintala and Bottou, 2017, arXiv:1701.07875.
struct WeightClip: ElementConstraint {
  static let method = Method(
    "weight_clip", .constraint, "Every entry within +-clip: the critic of a Wasserstein GAN.",
    rule: "project = min(max(w, -clip), clip);  argmin <g, u> = -clip*sign(g)",
    source: "Arjovsky, Chintala, Bottou, 2017, arXiv:1701.07875",
    parameters: [.number("clip", 0.01, .above(0), "largest magnitude")])
  let clip: Double
  init(_ h: Hyper) { clip = h.clip }
  @inline(__always) func project<L: Lane>(_ w: L) -> L { w.clipped(to: clip) }
  var folds: Folds? { Folds(.clip(-clip, clip)) }
  @inline(__always) func minimise<L: Lane>(_ g: L) -> L { farEnd(g, clip) }
}

/// The ball of the largest magnitude, max|w| ≤ r.
///
///     project = clip(w, −r, r)     argmin⟨g, u⟩ = −r·sign(g)
///
/// Source   textbook.
struct LinfBall: ElementConstraint {
  static let method = Method(
    "linf_ball", .constraint, "The ball max|w| <= radius.",
    rule: "project = min(max(w, -radius), radius);  argmin <g, u> = -radius*sign(g)", source: "textbook",
    parameters: [.number("radius", 1, .atLeast(0), "the radius")])
  let radius: Double
  init(_ h: Hyper) { radius = h.radius }
  @inline(__always) func project<L: Lane>(_ w: L) -> L { w.clipped(to: radius) }
  var folds: Folds? { Folds(.clip(-radius, radius)) }
  @inline(__always) func minimise<L: Lane>(_ g: L) -> L { farEnd(g, radius) }
}
