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
  let change: Change
  init(_ h: Hyper, _ c: StepContext) {
    self.h = h
    change = Change(
      beta1: h.beta1, beta2: h.beta2, c1: 1 / (1 - power(h.beta1, c.t)), c2: 1 / (1 - power(h.beta2, c.t)), eps: h.eps,
      exponent: h.hessian_power)
  }

  /// The magnitude of every entry lies behind the moments, or is one number.
  struct Change: ElementOperation {
    let beta1, beta2, c1, c2, eps, exponent: Double
    var mean: Double?
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let D = if let mean { L(mean) } else { s[2] }
      let m = beta1 * s[0] + (1 - beta1) * x, v = beta2 * s[1] + (1 - beta2) * (D * D)
      s[0] = m
      s[1] = v
      var root = (c2 * v).squareRoot()
      if exponent == 0 { root = L(1) } else if exponent != 1 { root = L.pow(root, exponent) }
      x = L.select(L.equal(m, L(0)), L(0), c1 * m / (root + eps))
    }
  }

  /// Entries that are averaged over: so many, one after the other.
  private func group(_ shape: Shape) -> Int {
    if shape.ndim > 2 { return shape.dimensions[2...].reduce(1, &*) }
    let block = h.integer("block")
    return block > 0 && shape.count % block == 0 ? block : 1
  }

  /// Entries whose means are written out at a time.
  private static let piece = 4096

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let D = w.slots[2], length = group(w.shape), piece = AdaHessian.piece
    guard length > 1 else { return w.change(change, slots: 0..<3) }
    let groups = w.count / length
    if length > piece {
      for k in 0..<groups {
        let entries = (k * length)..<((k + 1) * length)
        var one = change
        one.mean = w.sums(SlotTotal(), slots: 2..<3, in: entries).first / Double(length)
        w.change(one, slots: 0..<2, in: entries)
      }
      return
    }
    Parts(groups, of: length).forEach { _, part in
      withUnsafeTemporaryAllocation(of: T.self, capacity: piece) { room in
        guard let means = room.baseAddress else { return }
        for first in stride(from: part.lowerBound, to: part.upperBound, by: piece / length) {
          let end = min(first + piece / length, part.upperBound)
          for k in first..<end {
            let mean = T(Flat.sum(D + k * length, length) / Double(length))
            (means + (k - first) * length).update(repeating: mean, count: length)
          }
          let at = first * length
          w.change(change, slots: 0..<2, more: means, from: at, in: at..<(end * length))
        }
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
        io.keep(gradient, reads: true)
        io.draw(probe0, signs: true)
        return .ask(Ask(.hessianVector))
      }
      io.change(Magnitude(), slots: [diagonal], parameters: false)
      io.setScalar(0, io.scalar(0) + 1)
      return .update(io.gradient(in: gradient))
    }
  }
}
