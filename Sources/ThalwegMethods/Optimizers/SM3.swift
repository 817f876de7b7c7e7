import ThalwegCore

/// SM3: one number for every row, column, ... in place of a second moment for every element.
///
///     ν = the least of an element's numbers + g²,  or β·least + (1 − β)·g²
///     number of a slice ← the largest ν in it (with β, or the number before);   u = g/√(ν + ε)
///     m ← μ·m + (1 − μ)·u with momentum, else u;   θ ← θ − lr·m
///
/// State    a vector for each axis; m with momentum.
/// Differs  nothing from pytorch-optimizer; β is an addition of the ports. 0/0 is 0. A tensor of rank 0 is a vector of
///          one element, and a vector is AdaGrad.
/// Source   Anil, Gupta, Koren and Singer, 2019, arXiv:1901.11150 (SM3-II).
struct SM3: WholeRule {
  static let method = Method(
    "sm3", .optimizer, "One number for every slice along an axis in place of a second moment for every element.",
    rule: """
      nu = least number of the slices of an element + g^2, or beta*least + (1 - beta)*g^2
      number of a slice <- largest nu in it (beta > 0: or the number before)
      u = g/sqrt(nu + eps);  m <- momentum*m + (1 - momentum)*u, or u;  theta <- theta - lr*m
      """,
    source: "Anil, Gupta, Koren, Singer, 2019, arXiv:1901.11150",
    parameters: [
      .lr(0.1), .rate("momentum", 0, "rate of the average of the update").fixed,
      .rate("beta", 0, "rate of the second moment; 0: sums"), .eps(1e-30, "added under the root"),
    ],
    slots: [
      Slot("accumulator", "the numbers of the slices along each axis"),
      .moment("momentum_buffer", "average m of the update"),
    ])

  private static func axes(_ shape: Shape) -> [Int] { shape.ndim == 0 ? [1] : shape.dimensions }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let momentum: Double = h.momentum
    return axes(shape).enumerated().map {
      Slot("accumulator_\($0.offset)", "the numbers of the slices along axis \($0.offset)", count: $0.element)
    } + (momentum > 0 ? [method.slots[1]] : [])
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { aligned(shape.count &* size) }

  let momentum, beta, eps: Double

  init(_ h: Hyper, _ c: StepContext) { (momentum, beta, eps) = (h.momentum, h.beta, h.eps) }

  func apply<T: Real>(_ t: Whole<T>) {
    let axes = SM3.axes(t.shape), n = t.count, nu = t.workspace.assumingMemoryBound(to: T.self)
    var place = [Int](repeating: 0, count: axes.count)
    /// Calls `body` with every element, in order; `place` is where it lies.
    func each(_ body: (Int) -> Void) {
      for k in place.indices { place[k] = 0 }
      for i in 0..<n {
        body(i)
        var k = axes.count - 1
        place[k] += 1
        while k > 0, place[k] == axes[k] {
          place[k] = 0
          k -= 1
          place[k] += 1
        }
      }
    }
    let keep = T(beta == 0 ? 1 : beta), new = T(beta == 0 ? 1 : 1 - beta)
    each { i in
      var least = t.slots[0][place[0]]
      for k in 1..<max(1, axes.count) { least = min(least, t.slots[k][place[k]]) }
      nu[i] = keep * least + new * (t.v[i] * t.v[i])
    }
    if beta == 0 {
      for (k, length) in axes.enumerated() { t.slots[k].update(repeating: 0, count: length) }
    }
    each { i in
      for k in axes.indices where !(nu[i] <= t.slots[k][place[k]]) { t.slots[k][place[k]] = nu[i] }
    }
    for i in 0..<n {
      let root = (nu[i] + T(eps)).squareRoot()
      let u = t.v[i] == 0 && root == 0 ? 0 : t.v[i] / root
      guard momentum > 0 else {
        t.v[i] = u
        continue
      }
      let m = t.slots[axes.count]
      m[i] = T(momentum) * m[i] + T(1 - momentum) * u
      t.v[i] = m[i]
    }
  }
}
