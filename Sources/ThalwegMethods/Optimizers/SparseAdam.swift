import ThalwegCore

/// Adam on the rows that have a gradient: the others keep their moments and do not move.
///
///     t counts the steps of the tensor;  on rows whose gradient is not all 0:
///     m, v as Adam;   θ ← θ − lr·√c₂/c₁·m/(√v + ε)
///
/// Rows lie along the first axis; every element of a vector is a row.
///
/// State    m, v.
/// Differs  nothing from torch.optim.SparseAdam, but that gradients are dense: a row that was touched with a gradient
///          of zeros alone is not seen. ε is added to the uncorrected root.
/// Source   Kingma and Ba, 2014, arXiv:1412.6980; PyTorch.
struct SparseAdam: WholeRule {
  static let method = Method(
    "sparse_adam", .optimizer, "Adam on the rows that have a gradient; the others keep their moments and do not move.",
    rule: """
      rows (first axis) with a gradient that is not all 0: m, v as adam
      theta <- theta - lr*sqrt(c2)/c1*m/(sqrt(v) + eps);  other rows: nothing;  t counts the steps of the tensor
      """,
    source: "Kingma, Ba, 2014, arXiv:1412.6980; PyTorch",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8),
    ],
    slots: Adam.moments)

  let beta1, beta2, eps, rate: Double

  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
    rate = (1 - power(beta2, c.t)).squareRoot() / (1 - power(beta1, c.t))
  }

  func apply<T: Real>(_ t: Whole<T>) {
    let rows = max(1, t.shape.dimensions.first ?? 1), length = t.count / rows, m = t.slots[0], v = t.slots[1]
    let (b1, b2, n1, n2, eps, rate) = (T(beta1), T(beta2), T(1 - beta1), T(1 - beta2), T(eps), T(rate))
    for r in 0..<rows {
      let row = (r * length)..<((r + 1) * length)
      guard row.contains(where: { t.v[$0] != 0 }) else { continue }
      for i in row {
        let g = t.v[i]
        m[i] = b1 * m[i] + n1 * g
        v[i] = b2 * v[i] + n2 * (g * g)
        let top = rate * m[i], root = v[i].squareRoot() + eps
        t.v[i] = top == 0 && root == 0 ? 0 : top / root
      }
    }
  }
}
