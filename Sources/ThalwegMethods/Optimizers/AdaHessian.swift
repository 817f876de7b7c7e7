import Glibc
import ThalwegCore

/// AdaHessian: Adam whose second moment is that of the diagonal of the Hessian, averaged over the entries of a kernel.
///
///     D = |z⊙Hz|, z random signs, every `update_each` steps; its mean over each kernel (all axes from the third on),
///     or over groups of `block` entries of a tensor of rank 2 or less
///     m ← β₁·m + (1 − β₁)·g;   v ← β₂·v + (1 − β₂)·D²
///     θ ← θ − lr·((m/(1 − β₁ᵗ))/(√(v/(1 − β₂ᵗ))^p + ε) + wd·θ),   p = hessian_power
///
/// State    m, v, the last D; within a step the probe and the gradient.
/// Differs  `block` averages over consecutive entries of the flattened tensor where it divides their number, else not
///          at all (UNVERIFIED).
/// Source   Yao et al., 2020, arXiv:2006.00719.
struct AdaHessian: WholeRule {
  static let method = Method(
    "adahessian", .optimizer,
    "AdaHessian: Adam whose second moment is that of the diagonal of the Hessian, averaged over kernels.",
    rule: """
      D = |z*Hz|, z random signs, every update_each steps; averaged over each kernel, or over groups of block entries
      m <- beta1*m + (1 - beta1)*g;  v <- beta2*v + (1 - beta2)*D^2
      theta <- theta - lr*((m/(1 - beta1^t))/(sqrt(v/(1 - beta2^t))^hessian_power + eps) + weight_decay*theta)
      """,
    source: "Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, 2020, arXiv:2006.00719",
    parameters: [
      .lr(0.15), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-4), .weightDecay(0, "decoupled weight decay"),
      .number("hessian_power", 1, .within(0, 1), "exponent p of the root of the second moment"),
      .integer("block", 1, .atLeast(1), "entries averaged over in tensors of rank 2 or less"),
      .integer("update_each", 1, .atLeast(1), "steps between probes").forAll,
    ],
    slots: [
      .moment("exp_avg", "first moment m"), .square("exp_avg_sq", "second moment v"),
      Slot("diagonal", "magnitudes D of the last probe"),
    ],
    requests: "hessian_vector", needsFinite: true)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let h: Hyper
  let beta1, beta2, c1, c2, eps, exponent: Double
  init(_ h: Hyper, _ c: StepContext) {
    self.h = h
    (beta1, beta2, eps, exponent) = (h.beta1, h.beta2, h.eps, h.hessian_power)
    (c1, c2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  /// Entries that are averaged over: so many, one after the other.
  private func group(_ shape: Shape) -> Int {
    if shape.ndim > 2 { return shape.dimensions[2...].reduce(1, &*) }
    let block = h.integer("block")
    return block > 0 && shape.count % block == 0 ? block : 1
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let (m, v, D) = (w.slots[0], w.slots[1], w.slots[2]), length = group(w.shape)
    let (k1, t1, k2, t2) = (T(beta1), T(1 - beta1), T(beta2), T(1 - beta2))
    let (first, second, e) = (T(c1), T(c2), T(eps))
    for start in stride(from: 0, to: w.count, by: max(1, length)) {
      var sum = 0.0
      for i in start..<(start + length) { sum += Double(D[i]) }
      let mean = T(sum / Double(length)), square = t2 * (mean * mean)
      for i in start..<(start + length) {
        m[i] = k1 * m[i] + t1 * w.v[i]
        v[i] = k2 * v[i] + square
        let root = (second * v[i]).squareRoot()
        let d = (exponent == 1 ? root : T(pow(Double(root), exponent))) + e
        w.v[i] = m[i] == 0 ? 0 : first * m[i] / d
      }
    }
  }

  static let registered = entry(AdaHessian.self, source: { (h) throws(Failure) in try Probe(h) })

  /// Every `update_each` steps asks for the Hessian times random signs.
  struct Probe: Source {
    static var method: Method { AdaHessian.method }
    let diagonal = 2, probe0 = 3, gradient = 4
    init(_ h: Hyper) throws(Failure) {}
    var slots: [Slot] {
      [Slot.temporary("probe", "the vector z"), Slot.temporary("gradient", "the gradient of the step")]
    }
    var scalars: [Scalar] { [Scalar("steps")] }
    var probe: Int? { 0 }
    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { [.hessianVector] }

    struct Magnitude: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = g.magnitude }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      if phase == 0 {
        let steps = io.counter(0)
        if steps % max(1, io.hyper.integer("update_each")) != 0 {
          io.setScalar(0, io.scalar(0) + 1)
          return .update(nil)
        }
        io.change(SaveGradient(), slots: [gradient], parameters: false)
        io.draw(probe0, signs: true)
        return .ask(Ask(.hessianVector))
      }
      io.change(Magnitude(), slots: [diagonal], parameters: false)
      io.setScalar(0, io.scalar(0) + 1)
      return .update(io.gradient(in: gradient))
    }
  }
}
