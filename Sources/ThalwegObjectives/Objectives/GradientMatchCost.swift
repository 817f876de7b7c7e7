import Glibc
import ThalwegCore

/// How far gradients are from those that were shared, for an audit of what they give away.
///
///     cosine: 1 − ⟨a, b⟩/(‖a‖·‖b‖), all tensors jointly     ∂a = −(b/(‖a‖·‖b‖) − cos·a/‖a‖²)
///     l2:     ‖a − b‖²
///
/// a and b have the same shape: the gradients of all tensors in a row. A zero gradient has the cosine cost 1 and no
/// derivative. The host carries ∂a on to the variable, which is a second-order product.
/// Source   Geiping et al., 2020, arXiv:2003.14053; Fang et al., 2023, arXiv:2308.04699.
struct GradientMatchCost: Objective {
  static let method = Method(
    "gradient_match_cost", .objective, "How far gradients are from those that were shared.",
    rule: "cosine: value = 1 - <a, b>/(|a|*|b|);  l2: |a - b|^2", source: "Fang et al., 2023, arXiv:2308.04699",
    parameters: [.choice("kind", ["cosine", "l2"], "cost")],
    inputs: [.variable("a", "...", "gradients"), .constant("b", "...", "gradients to match")])
  let cosine: Bool
  init(_ h: Hyper) { cosine = h.is("kind", "cosine") }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let a = try x["a"], b = try x["b"], n = x.sizes.samples, g = try cache?.keep("a", n, T.self)
    if !cosine {
      return Rows.sum(n, work: 4) { i in
        let apart = Double(a[i]) - Double(b[i])
        g?[i] = T(2 * apart)
        return apart * apart
      }
    }
    let sizes = (Flat.norm(a, n), Flat.norm(b, n))
    guard sizes.0 != 0, sizes.1 != 0 else { return 1 }
    // directions first: products of large or small numbers stay in range
    let cos = Rows.sum(n, work: 4) { Double(a[$0]) / sizes.0 * (Double(b[$0]) / sizes.1) }
    if let g { for i in 0..<n { g[i] = T((cos * Double(a[i]) / sizes.0 - Double(b[i]) / sizes.1) / sizes.0) } }
    return 1 - cos
  }
}
