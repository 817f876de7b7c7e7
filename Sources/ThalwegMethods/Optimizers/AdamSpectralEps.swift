import Glibc
import ThalwegCore

/// Adam whose ε is scaled by the product of the spectral norms of the listed layers.
///
///     for every listed weight W (out, rest), n_power_iterations times:  v = Wᵀ·u/‖Wᵀ·u‖,  u = W·v/‖W·v‖;   σ = uᵀ·W·v
///     P = Π σ;   m ← β₁·m + (1 − β₁)·g;   v ← β₂·v + (1 − β₂)·g²;   θ ← θ − lr·(m/c₁)/(√(v/c₂) + ε·P)
///
/// `listed` has the positions of the layers, in the order of binding; none: P = 1. u starts at the same number in every
/// row.
///
/// State    m, v, and u of every matrix.
/// Errors   TW_ERROR_RANGE: a position with no tensor of rank 2 or more.
/// Differs  which layers count, and the forms that divide outputs or gradients, are UNVERIFIED. P = 0 makes ε 0, and
///          0/0 0.
/// Source   Gogianu et al., 2021, arXiv:2105.05246.
struct AdamSpectralEps: WholeRule {
  static let method = Method(
    "adam_spectral_eps", .optimizer,
    "Adam whose epsilon is scaled by the product of the spectral norms of listed layers.",
    rule: """
      P = product of the spectral norms of the listed weights, by power iteration
      m <- beta1*m + (1 - beta1)*g;  v <- beta2*v + (1 - beta2)*g^2
      theta <- theta - lr*(m/(1 - beta1^t))/(sqrt(v/(1 - beta2^t)) + eps*P)
      """,
    source: "Gogianu et al., 2021, arXiv:2105.05246",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-8), .weightDecay(0, "coupled weight decay"),
      .list("listed", nil, "positions of the layers whose norms count", optional: true),
      .integer("n_power_iterations", 1, .within(1, 1000), "of each step").forAll,
    ],
    slots: Adam.moments + [Slot("u", "left vector of the power iteration", start: .value(1))],
    validate: { (h) throws(Failure) in
      for x in h.list("listed") where !(x >= 0 && x == x.rounded() && x < 1e9) {
        throw Failure(Status.range, "adam_spectral_eps: `listed` must hold positions, got \(text(x))")
      }
    })

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    list[2].count = shape.ndim >= 2 ? shape.rows : 0
    return list
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("product", 1)] }
  static func decay(_ h: Hyper) -> Decay { .coupled }

  let beta1, beta2, c1, c2, eps: Double
  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2) = (h.beta1, h.beta2)
    (c1, c2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
    eps = h.eps * c.scalars[0]
  }
  func apply<T: Real>(_ t: Whole<T>) {
    let (m, v) = (t.slots[0], t.slots[1]), (k1, f1, k2, f2) = (T(beta1), T(1 - beta1), T(beta2), T(1 - beta2))
    let (r1, r2, e) = (T(c1), T(c2), T(eps))
    for i in 0..<t.count {
      let g = t.v[i]
      m[i] = k1 * m[i] + f1 * g
      v[i] = k2 * v[i] + f2 * (g * g)
      t.v[i] = m[i] == 0 ? 0 : r1 * m[i] / ((r2 * v[i]).squareRoot() + e)
    }
  }

  static let registered = entry(AdamSpectralEps.self, source: { (h) throws(Failure) in Norms(h) })

  struct Norms: Source {
    static var method: Method { AdamSpectralEps.method }
    let listed: [Int]
    init(_ h: Hyper) { listed = h.list("listed").map { Int($0) } }
    private let u = 2, point = 3
    var slots: [Slot] { [.temporary("point", "the parameters of the step")] }
    var single: Bool { true }
    var global: Bool { true }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      guard !listed.isEmpty else { return .update(nil) }
      io.change(SaveParameters(), slots: [point], parameters: false)
      let present = io.tensors { $0.ndim >= 2 }
      var product = 1.0, found: [(Int, [Double])] = []
      for layer in listed {
        guard present.contains(layer) else {
          throw Failure(
            Status.range,
            "adam_spectral_eps: `listed` has \(layer), which is no tensor of rank 2 or more with a gradient")
        }
        let shape = io.shape(of: layer), m = shape.rows, n = shape.columns, W = io.read(point, of: layer)
        var left = io.read(u, of: layer), right = [Double](repeating: 0, count: n)
        for _ in 0..<max(1, io.hyper.integer("n_power_iterations")) {
          try LinearAlgebra.multiply(W, transposed: true, left, into: &right, n, 1, m)
          normalise(&right)
          try LinearAlgebra.multiply(W, right, into: &left, m, 1, n)
          normalise(&left)
        }
        var image = left
        try LinearAlgebra.multiply(W, right, into: &image, m, 1, n)
        product *= zip(left, image).reduce(0) { $0 + $1.0 * $1.1 }
        // a start that W maps to 0 is no start
        if left.contains(where: { $0 != 0 }) { found.append((layer, left)) }
      }
      for (layer, left) in found { io.fill(u, of: layer, left) }
      io.setScalar(0, product)
      return .update(nil)
    }
    private func normalise(_ x: inout [Double]) {
      let size = Flat.norm(x, x.count)
      if size > 0 { for i in x.indices { x[i] /= size } }
    }
  }
}
