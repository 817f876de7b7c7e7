import ThalwegCore

/// AdaHessian: Adam whose second moment is that of the diagonal of the Hessian, averaged over the entries of a kernel.
///
///     D = |z⊙Hz|, z random signs, every `update_each` steps; its mean over each kernel (all axes from the third on),
///     or over groups of `block` entries of a tensor of rank 2 or less
///     m ← β₁·m + (1 − β₁)·g;   v ← β₂·v + (1 − β₂)·D²
///     θ ← θ − lr·((m/(1 − β₁ᵗ))/(√(v/(1 − β₂ᵗ))^p + ε) + wd·θ),   p = hessian_power
///
/// State    m, v, the means of the last D; within a step the probe and the gradient.
/// Differs  `block` averages over consecutive entries of the flattened tensor where it divides their number, else not
///          at all (UNVERIFIED).
/// Source   Yao et al., 2020, arXiv:2006.00719.
struct AdaHessian: ElementRule {
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
      .half("diagonal", "means D of the magnitudes of the last probe"),
    ],
    requests: "hessian_vector", needsFinite: true)

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, c1, c2, eps, exponent: Double
  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, exponent) = (h.beta1, h.beta2, h.eps, h.hessian_power)
    (c1, c2) = (1 / (1 - power(beta1, c.t)), 1 / (1 - power(beta2, c.t)))
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let D = s[2], m = beta1 * s[0] + (1 - beta1) * g, v = beta2 * s[1] + (1 - beta2) * (D * D)
    s[0] = m
    s[1] = v
    var root = (c2 * v).squareRoot()
    if exponent == 0 { root = L(1) } else if exponent != 1 { root = L.pow(root, exponent) }
    return L.select(L.equal(m, L(0)), L(0), c1 * m / (root + eps))
  }

  /// Every entry becomes the mean of its group: of the kernel that it is in, or of `block` neighbours.
  struct Average: SlotWork {
    let block: Int
    func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) {
      let D = slots[0], length = group(shape)
      if length < 2 { return }
      Parts(shape.count / length, of: length).forEach { _, part in
        for k in part {
          let mean = T(Flat.sum(D + k * length, length) / Double(length))
          (D + k * length).update(repeating: mean, count: length)
        }
      }
    }
    private func group(_ shape: Shape) -> Int {
      if shape.ndim > 2 { return shape.dimensions[2...].reduce(1, &*) }
      return shape.count % block == 0 ? block : 1
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
        io.keep(gradient, reads: true)
        io.draw(probe0, signs: true)
        return .ask(Ask(.hessianVector))
      }
      io.change(Magnitude(), slots: [diagonal], parameters: false)
      for tensor in io.tensors(where: { _ in true }) {
        try io.work(Average(block: io.hyper(of: tensor).integer("block")), on: tensor, slots: [diagonal])
      }
      io.setScalar(0, io.scalar(0) + 1)
      return .update(io.gradient(in: gradient))
    }
  }
}
