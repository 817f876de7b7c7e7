import Glibc
import ThalwegCore

/// AutoSparse: soft thresholding with a threshold that is trained, and gradients for masked weights that fade out.
///
///     T = σ(s);   effective = sign(w)·max(|w| − T, 0);   value = ⟨g, effective⟩
///     h = 1 where |w| > T, else α;   gradient by w: g·h;   by s: −T·(1 − T)·Σ g·sign(w)·h
///     x = t/total:  cosine α = alpha0·c, c = (1 + cos πx)/2;  sigmoid alpha0·b, b = 1 − σ(l0 + (l1 − l0)·x)
///       sigmoid_cosine alpha0·max(b, c);  linear alpha0·(1 − x);  constant alpha0;  0 after total
///
/// s is one number a tensor, or one of all tensors where the host adds up its gradients; s_init where it is left out.
/// |w| = T is masked. Without g the value is 0. alpha0 = 0 is STR.
/// State    t, the training passes so far; a `t` that is given counts in its place, and on from it.
/// Differs  the defaults of s_init, l0, l1 and the maximum of sigmoid_cosine are UNVERIFIED.
/// Source   Kundu et al., 2023, arXiv:2304.06941; STR: Kusupati et al., 2020, arXiv:2002.03231.
struct AutoSparse: Objective {
  static let method = Method(
    "autosparse", .objective, "Soft thresholding with a trained threshold and fading gradients of masked weights.",
    rule: """
      T = sigmoid(s);  effective = sign(w)*max(|w| - T, 0);  value = <g, effective>;  h = 1 where |w| > T, else alpha
      gradient by w = g*h;  by s = -T*(1 - T)*sum(g*sign(w)*h);  x = t/total, alpha = 0 after total
      cosine: alpha0*c, c = (1 + cos(pi*x))/2;  sigmoid: alpha0*b, b = 1 - sigmoid(l0 + (l1 - l0)*x)
      sigmoid_cosine: alpha0*max(b, c);  linear: alpha0*(1 - x);  constant: alpha0
      """,
    source: "Kundu et al., 2023, arXiv:2304.06941; Kusupati et al., 2020, arXiv:2002.03231",
    parameters: [
      .number("alpha0", 0.75, .within(0, 1), "share of the gradient that masked weights get at first"),
      .integer("total", nil, .atLeast(1), "passes until they get none"),
      .choice("schedule", ["cosine", "sigmoid", "sigmoid_cosine", "linear", "constant"], "how that share falls"),
      .number("s_init", -5, .any, "s where none is given"), .number("l0", -6, .any, "of the sigmoid, at the start"),
      .number("l1", 6, .any, "at the end"),
    ],
    inputs: [
      .variable("w", "...", "the dense weights"), .variable("s", "", "threshold logit; s_init", optional: true),
      .integer("t", "", "passes before this one; counted when left out", optional: true),
      .constant("g", "...", "gradient by the effective weights; 0 when left out", optional: true), .training,
      .result("effective", "...", "the weights that the layer uses"), .result("alpha", "", "share of this pass"),
      .result("threshold", "", "T"),
    ],
    validate: { (h) throws(Failure) in
      let l0: Double = h.l0, l1: Double = h.l1
      guard l0 < l1 else {
        throw Failure(Status.range, "autosparse: `l0` must be below `l1`, got \(text(l0)) and \(text(l1))")
      }
    })
  static func state(_ h: Hyper) -> [Recollection] { [Recollection("t")] }
  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  private func alpha(_ t: Double) -> Double {
    guard t <= h.total else { return 0 }
    let x = t / h.total, cosine = (1 + cos(.pi * x)) / 2, b = sigmoid(-(h.l0 + (h.l1 - h.l0) * x))
    if h.is("schedule", "linear") { return h.alpha0 * (1 - x) }
    if h.is("schedule", "cosine") { return h.alpha0 * cosine }
    if h.is("schedule", "sigmoid") { return h.alpha0 * b }
    return h.is("schedule", "constant") ? h.alpha0 : h.alpha0 * max(b, cosine)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], n = x.sizes.samples, g = Upstream(x), passes = try x.memory["t"]
    let t = x.optionalIntegers("t").map { Double($0[0]) } ?? passes[0]
    guard t >= 0 else { throw Failure(Status.range, "`t` must not be negative, got \(text(t))") }
    if x.trains { passes[0] = t + 1 }
    let alpha = alpha(t), threshold = sigmoid(x.optional("s").map { Double($0[0]) } ?? h.s_init)
    let out = try cache?.keep("effective", n, T.self), back = try cache?.keep("w", n, T.self)
    let value = Rows.sum(n, work: 4) { i in
      let a = Double(w[i]), e = abs(a) <= threshold ? 0 : sign(a) * (abs(a) - threshold)
      out?[i] = T(e)
      back?[i] = T(abs(a) > threshold ? g[i] : alpha * g[i])
      return g[i] * e
    }
    if let cache {
      let pull = Rows.sum(n, work: 4) { i in
        let a = Double(w[i])
        return g[i] * sign(a) * (abs(a) > threshold ? 1 : alpha)
      }
      try cache.keep("s", 1, T.self)[0] = T(-threshold * (1 - threshold) * pull)
      try cache.keep("alpha", 1, T.self)[0] = T(alpha)
      try cache.keep("threshold", 1, T.self)[0] = T(threshold)
    }
    return value
  }
}
