import Glibc
import ThalwegCore

/// The binary hinge.
///
///     u = max(0, m − y·s)     value = mean u^k     ∂s = −y·k·u^(k−1)·[u > 0]/N
///
/// s and y are (...), y is −1 or 1. At the margin the gradient is 0.
/// Differs  scikit-learn's hinge_loss has the same value; torch's hinge_embedding_loss is another function.
/// Source   Cortes and Vapnik, 1995.
struct Hinge: Objective {
  static let method = Method(
    "hinge", .objective, "The binary hinge, also squared.",
    rule: "u = max(0, margin - y*s);  value = mean u^power;  gradient for s: -y*power*u^(power - 1)*[u > 0]/N",
    source: "Cortes, Vapnik, 1995",
    parameters: [
      .number("margin", 1, .above(0), "margin"), .integer("power", 1, .within(1, 2), "1, or 2: squared"),
      Reduction.parameter,
    ],
    inputs: [.variable("s", "...", "scores"), .integer("y", "...", "labels, -1 or 1")])
  let margin: Double, squared: Bool, reduction: Reduction
  init(_ h: Hyper) { (margin, squared, reduction) = (h.margin, h.power == 2.0, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let s = try x["s"], y = try x.integers("y"), n = x.sizes.samples
    try Labels.check(y, n, either: -1, or: 1)
    return reduction.elements(n, into: try cache?.keep("s", n, T.self)) { i in
      let (value, slope) = hinge(margin - Double(y[i]) * Double(s[i]), squared)
      return (value, -Double(y[i]) * slope)
    }
  }
}

/// max(0, u), or its square, and the derivative.
private func hinge(_ u: Double, _ squared: Bool) -> (value: Double, slope: Double) {
  if u <= 0 { return (0, 0) }
  return squared ? (u * u, 2 * u) : (u, u > 0 ? 1 : u)
}

/// The multi-class hinge.
///
///     u_j = max(0, m − z_y + z_j), j ≠ y     value = mean (1/C)·Σ_j u_j^k
///
/// Differs  torch's multi_margin_loss is the same; it divides by C, not by C − 1.
/// Source   Crammer and Singer, 2001.
struct MultiMargin: Objective {
  static let method = Method(
    "multi_margin", .objective, "The multi-class hinge, also squared.",
    rule: """
      u_j = max(0, margin - z_y + z_j), j != y;  value = mean 1/C*sum_j u_j^power
      gradients for z_j: power*u_j^(power - 1)*[u_j > 0]/(n*C);  for z_y: minus their sum
      """,
    source: "Crammer, Singer, 2001", parameters: Hinge.method.parameters,
    inputs: [.variable("z", "..., C", "scores of the classes"), .integer("y", "...", "labels, from 0 to C - 1")])
  let margin: Double, squared: Bool, reduction: Reduction
  init(_ h: Hyper) { (margin, squared, reduction) = (h.margin, h.power == 2.0, Reduction(h)) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["z"], y = try x.integers("y"), rows = x.sizes.samples, classes = x.sizes["C"]
    try Labels.check(y, rows, classes)
    let g = try cache?.keep("z", rows * classes, T.self), weight = reduction.weight(rows) / Double(classes)
    return weight
      * Rows.sum(rows, work: 4 * classes) { i in
        let row = z + i * classes, own = Double(row[y[i]])
        var sum = 0.0, slopes = 0.0
        for j in 0..<classes where j != y[i] {
          let (value, slope) = hinge(margin - own + Double(row[j]), squared)
          sum += value
          slopes += slope
          g?[i * classes + j] = T(weight * slope)
        }
        g?[i * classes + y[i]] = T(-weight * slopes)
        return sum
      }
  }
}
