import ThalwegCore

/// FSAM: only the parameters with the largest squared gradients, an estimate of the Fisher information, are perturbed.
///
///     at every `refresh_every`-th step (from the first):  mask = the ⌊keep_ratio·n⌋ largest g² of all n entries
///     e = ρ·g·mask/(‖g‖ + ε), ‖·‖ of the whole gradient;   the rule sees the gradient at θ + e
///
/// State    the mask and the count of steps; while it asks, the parameters.
/// Differs  groups with maskable=false (biases, embeddings, batch norms in the paper) are perturbed whole and not
///          counted in n. Of entries that tie with the last one kept the first ones are kept, in the order of binding;
///          magnitudes below the smallest float count as 0. The mask comes from the gradient of its own step; the
///          authors' code has no perturbation there. Estimates from
///          single samples' gradients are not there.
/// Source   Zhong, Ding, Shen, Mi, Liu, Du and Tao, 2022, arXiv:2210.05497.
struct FSAM: Source {
  static let method = Method(
    "fsam", .perturbation, "SAM that perturbs the parameters with the largest squared gradients.",
    rule: """
      every refresh_every steps, from the first: mask = the floor(keep_ratio*n) largest g^2 of all maskable entries
      e = rho/(|g| + eps) * g*mask, the norm of the whole gradient;  g <- gradient at theta + e
      """,
    source: "Zhong, Ding, Shen, Mi, Liu, Du, Tao, 2022, arXiv:2210.05497",
    parameters: [
      .number("rho", 0.05, .atLeast(0), "radius"),
      .number("keep_ratio", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "share that is perturbed").forAll,
      .integer("refresh_every", 100, .atLeast(1), "steps from one mask to the next").forAll,
      .flag("maskable", true, "the group's entries compete; else all of them are perturbed"),
      .eps(1e-7, "added to the norm"),
    ],
    slots: [
      Slot("mask", "1 where the parameter is perturbed"), homeSlot,
      Slot.temporary("fresh_mask", "the mask of this step"),
    ],
    requests: "gradient")

  let slots = FSAM.method.slots
  let scalars = [Scalar("steps")]
  private let mask = 0, point = 1, fresh = 2
  init(_ h: Hyper) {}
  func most(_ tensors: Int) -> Int { 2 }

  private struct Count: ElementSum {
    let counts: Bool, from: SIMD4<Double>
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      guard counts else { return }
      let a = g.magnitude
      for k in 0..<4 { sums.add(k, L.select(L.less(a, L(from[k])), L(0), L(1))) }
      sums.raise(a)
    }
  }
  /// 1 from a magnitude on, or above it.
  private struct Choose: ElementOperation {
    let from: Double, ties: Bool
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let a = g.magnitude
      s[0] = ties ? L.select(L.less(a, L(from)), L(0), L(1)) : L.select(L.less(L(from), a), L(1), L(0))
    }
  }
  private struct Magnitude: ElementOperation {
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { s[0] = g.magnitude }
  }
  /// How many magnitudes lie above one, and how many at least there.
  private struct Above: ElementSum {
    let counts: Bool, from: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      guard counts else { return }
      let a = g.magnitude
      sums.count(0, L.self, where: L.less(L(from), a))
      sums.add(1, L.select(L.less(a, L(from)), L(0), L(1)))
    }
  }
  private struct Copy: ElementOperation {
    var all = false
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = all ? L(1) : s[1]
    }
  }
  private struct AscendMasked: ElementOperation {
    let scale: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      s[0] = x
      x = x + scale * (g * s[1])
    }
  }

  /// The largest magnitude that at least `k` entries reach, found digit by digit of its bits; 0 where fewer than `k`
  /// entries are not 0.
  private func threshold(_ k: Int, _ io: SourceIO) -> Double {
    func count(_ bits: [UInt64]) -> SourceTotals {
      var from = SIMD4<Double>(repeating: .infinity)
      for (i, b) in bits.enumerated() { from[i] = Double(bitPattern: b) }
      return io.sum { Count(counts: $0.maskable, from: from) }
    }
    // smaller ones count as 0: of floats they are, and the padding of a vector is 0 too
    let least = Double(Float.leastNonzeroMagnitude).bitPattern
    if count([least])[0] < Double(k) { return 0 }
    var low = least, high = Double.infinity.bitPattern  // reached by k, not reached
    while high - low > 1 {
      let step = max(1, (high - low) / 5)
      let tries = (1...4).map { low + UInt64($0) * step }.filter { $0 < high }
      let counts = count(tries)
      for (i, b) in tries.enumerated() {
        if counts[i] >= Double(k) {
          low = b
        } else {
          high = b
          break
        }
      }
    }
    return Double(bitPattern: low)
  }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    let h = io.hyper, t = io.scalar(0)
    if phase > 0 {
      io.change(Copy(), slots: [mask, fresh], parameters: false)
      io.setScalar(0, t + 1)
      io.comeHome()
      return .update(nil)
    }
    if t.truncatingRemainder(dividingBy: h.refresh_every) == 0 {
      choose(io)
    } else {
      // (those that do not compete may have been absent when the mask was made)
      io.change(slots: [fresh, mask], parameters: false) { Copy(all: !$0.maskable) }
    }
    let norm = io.sum(SquaredNorm()).root(0)
    io.change(slots: [point, fresh], parameters: true) { AscendMasked(scale: perLength($0.rho, norm, $0.eps)) }
    return .ask(Ask(.gradient))
  }

  /// The mask of this step's gradient.
  private func choose(_ io: SourceIO) {
    let tensors = io.tensors { _ in true }.filter { io.hyper(of: $0).maskable }
    func size(_ tensor: Int) -> Double { Double(io.shape(of: tensor).count) }
    let k = (io.hyper.keep_ratio * tensors.reduce(0) { $0 + size($1) }).rounded(.down)
    guard k >= 1 else {
      io.change(slots: [fresh], parameters: false) { Choose(from: $0.maskable ? .infinity : 0, ties: true) }
      return
    }
    let least = Double(Float.leastNonzeroMagnitude).nextDown, found = threshold(Int(k), io)
    let from = found == 0 ? least : found
    // ties in the order of binding, as long as there is room
    let counts = io.sums { Above(counts: $0.maskable, from: from) }
    var room = k - tensors.reduce(0) { $0 + counts[$1][0] }
    var whole = [Bool](repeating: false, count: counts.count), part: (tensor: Int, room: Double)?
    for i in tensors {
      let ties = (found == 0 ? size(i) : counts[i][1]) - counts[i][0]
      if ties <= room { whole[i] = true } else if room > 0 { part = (i, room) }
      room = max(0, room - ties)
    }
    var divided: [Double] = []
    if let part {
      io.change(Magnitude(), slots: [fresh], parameters: false)
      divided = io.read(fresh, of: part.tensor)
    }
    io.change(
      slots: [fresh], parameters: false,
      each: { i in
        guard io.hyper(of: i).maskable else { return Choose(from: 0, ties: true) }
        return Choose(from: whole[i] && found == 0 ? 0 : from, ties: whole[i])
      })
    guard let part else { return }
    // floats have seen the border as one
    let floats = divided.allSatisfy { Double(Float($0)) == $0 }, border = floats ? Double(Float(from)) : from
    var left = part.room
    let kept = divided.map { a -> Double in
      let ties = found == 0 ? !(a > border) : a == border
      guard ties, left > 0 else { return ties ? 0 : a > border ? 1 : 0 }
      left -= 1
      return 1
    }
    io.fill(fresh, of: part.tensor, kept)
  }
}
