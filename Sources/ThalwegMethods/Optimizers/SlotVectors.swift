import ThalwegCore

/// Slots of a source as vectors over all tensors that have a gradient.
enum SlotVectors {
  /// s[0] ← factor·s[0] + the weighted sum of the slots behind it, up to seven.
  struct Add: ElementOperation {
    private let factor: Factor, first, second: SIMD8<Double>, count: Int
    init(_ factor: Double, _ weights: ArraySlice<Double>) {
      (self.factor, count) = (Factor(factor), weights.count)
      var a = SIMD8<Double>(repeating: 0), b = a
      for (k, x) in weights.map({ Factor($0) }).enumerated() { (a[k], b[k]) = (x.first, x.second) }
      (first, second) = (a, b)
    }
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      var sum = factor.first == 0 ? L(0) : factor * s[0]
      for k in 0..<count { sum = sum + second[k] * (first[k] * s[k + 1]) }
      s[0] = sum
    }
  }
  /// Inner products of s[0] with up to four slots behind it.
  struct Products: ElementSum {
    let count: Int
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[1])
      if count > 1 { sums.add(1, s[0], times: s[2]) }
      if count > 2 { sums.add(2, s[0], times: s[3]) }
      if count > 3 { sums.add(3, s[0], times: s[4]) }
    }
  }
  /// ‖s[0]‖², ‖s[0]‖₁ and the largest magnitude.
  struct Sizes: ElementSum {
    @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
      sums.add(0, s[0], times: s[0])
      sums.add(1, s[0].magnitude)
      sums.raise(s[0].magnitude)
    }
  }
  /// To the point s[0] + t·s[1].
  struct Along: ElementOperation {
    let t: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) { x = s[0] + t * s[1] }
  }
}

extension SourceIO {
  /// The slot ← factor·itself + Σ weights[k]·(slot of the others, k).
  func add(_ slot: Int, _ factor: Double, _ weights: [Double], _ others: [Int]) {
    for first in stride(from: 0, to: max(1, weights.count), by: 7) {
      let part = first..<min(first + 7, weights.count)
      change(
        SlotVectors.Add(first == 0 ? factor : 1, weights[part]), slots: [slot] + part.map { others[$0] },
        parameters: false)
    }
  }
  /// slot ← factor·other.
  func copy(_ other: Int, times factor: Double = 1, into slot: Int) { add(slot, 0, [factor], [other]) }
  /// Inner products of a slot with others.
  func products(_ slot: Int, _ others: [Int]) -> [Double] {
    stride(from: 0, to: others.count, by: 4).flatMap { first in
      let part = Array(others[first..<min(first + 4, others.count)])
      let sums = sum(SlotVectors.Products(count: part.count), slots: [slot] + part)
      return part.indices.map { sums[$0] }
    }
  }
  func product(_ slot: Int, _ other: Int) -> Double { products(slot, [other])[0] }
  func norm(_ slot: Int) -> Double { sizes(slot).norm }
  func sizes(_ slot: Int) -> (norm: Double, one: Double, largest: Double) {
    let sums = sum(SlotVectors.Sizes(), slots: [slot])
    return (sums.root(0), sums[1], sums[Sums.top])
  }
  /// The parameters go to the point in `slot` plus t times that in `direction`.
  func go(to slot: Int, along direction: Int, _ t: Double) {
    change(SlotVectors.Along(t: t), slots: [slot, direction], parameters: true)
  }
  /// Elements of all tensors that have a gradient, on all ranks.
  var elements: Int {
    counted(overRanks(Double(tensors { _ in true }.reduce(0) { $0 &+ shape(of: $1).count })), most: 1 << 52)
  }
  /// The loss of the answer, as something to lower.
  var cost: Double { maximizes ? -loss : loss }
}
