import Glibc
import ThalwegCore

/// The graph of an operation: the points (inputs, output) with output = op(inputs), one along every line of the last
/// axis. A net whose layers are such sets trains by projections alone.
protocol GraphConstraint: WholeConstraint {
  /// Throws where a line of n numbers is no (inputs, output).
  static func fits(_ n: Int) throws(Failure)
  /// x ← the nearest point of the graph.
  func nearest(_ x: inout [Double])
}

extension GraphConstraint {
  static var needsFinite: Bool { true }
  static func fits(_ n: Int) throws(Failure) {
    guard n >= 2 else {
      throw Failure(Status.shape, "\(method.name): the last axis holds inputs and an output, got a length of \(n)")
    }
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    if shape.count > 0 { try fits(shape.dimensions.last ?? 1) }
  }
  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    try finite(w.v, w.count, Self.method.name)
    let lines = Slices.along(-1, w.shape)
    if w.count == 0 { return }
    for s in 0..<lines.count {
      let p = w.v + lines.start(s)
      var x = (0..<lines.length).map { Double(p[$0]) }
      nearest(&x)
      for i in x.indices { p[i] = T(x[i]) }
    }
  }
}

private let source = "Bergmeister, Lal, Jegelka, Sra, 2025"
private func distance(_ a: [Double], _ b: [Double]) -> Double {
  zip(a, b).reduce(0) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
}

/// Copies that agree: every entry of a line becomes their mean.
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct GraphIdentity: GraphConstraint {
  static let method = Method(
    "graph_identity", .constraint, "Copies that agree: every line of the last axis becomes its mean.",
    rule: "project: the mean of the line", source: source)
  init(_ h: Hyper) {}
  func nearest(_ x: inout [Double]) {
    // differences to the first keep a line of equal numbers as it is
    let first = x[0], mean = first + x.reduce(0) { $0 + ($1 - first) } / Double(x.count)
    for i in x.indices { x[i] = mean }
  }
}

/// The graph of a sum: lines (a₁, …, a_n, z) with z = Σ a.
///
///     t = (z − Σ a)/(n + 1)     a + t, z − t
///
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct GraphSum: GraphConstraint {
  static let method = Method(
    "graph_sum", .constraint, "The graph of a sum: lines (a_1, ..., a_n, z) of the last axis with z = sum a.",
    rule: "project: t = (z - sum a)/(n + 1);  a + t, z - t", source: source)
  init(_ h: Hyper) {}
  func nearest(_ x: inout [Double]) {
    let n = x.count - 1, t = (x[n] - x.dropLast().reduce(0, +)) / Double(n + 1)
    for i in 0..<n { x[i] += t }
    x[n] -= t
  }
}

/// The graph of a maximum: lines (a₁, …, a_n, z) with z = max a.
///
///     for k = 1 … n: the k largest inputs and z at their mean, unless the next input is larger; the smallest move wins
///
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct GraphMax: GraphConstraint {
  static let method = Method(
    "graph_max", .constraint, "The graph of a maximum: lines (a_1, ..., a_n, z) of the last axis with z = max a.",
    rule: "project: the k largest inputs and z at their mean, for the best k that leaves no larger input",
    source: source)
  init(_ h: Hyper) {}
  func nearest(_ x: inout [Double]) {
    let n = x.count - 1, z = x[n]
    let order = (0..<n).sorted { x[$0] != x[$1] ? x[$0] > x[$1] : $0 < $1 }
    var best = (cost: Double.infinity, k: 0, level: z), sum = z, squares = z * z
    for k in 1...n {
      let a = x[order[k - 1]]
      sum += a
      squares += a * a
      let level = sum / Double(k + 1)
      if k < n, x[order[k]] > level { continue }
      let cost = squares - level * sum  // Σ (a − level)²
      if cost < best.cost { best = (cost, k, level) }
    }
    for i in order.prefix(best.k) { x[i] = best.level }
    x[n] = best.level
  }
}

/// The graph of a rectifier: lines (s, z) with z = max(s, 0).
///
///     (min(s, 0), 0), or (m, m) with m = max((s + z)/2, 0); the smaller move wins, the second on a tie
///
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct GraphReLU: GraphConstraint {
  static let method = Method(
    "graph_relu", .constraint, "The graph of a rectifier: lines (s, z) of the last axis with z = max(s, 0).",
    rule: "project: (min(s, 0), 0), or (m, m) with m = max((s + z)/2, 0); the smaller move, the second on a tie",
    source: source)
  init(_ h: Hyper) {}
  static func fits(_ n: Int) throws(Failure) {
    guard n == 2 else {
      throw Failure(Status.shape, "graph_relu: the last axis holds one input and its output, got a length of \(n)")
    }
  }
  func nearest(_ x: inout [Double]) {
    let flat = [min(x[0], 0), 0], m = max((x[0] + x[1]) / 2, 0)
    x = distance(flat, x) < distance([m, m], x) ? flat : [m, m]
  }
}

/// The graph of a rectified sum: lines (a₁, …, a_n, z) with z = max(Σ a, 0).
///
///     a − max(Σ a, 0)/n, 0;   or a + t, z − t with t = (z − Σ a)/(n + 1), and a − Σ a/n, 0 where z − t < 0;
///     the smaller move wins, the second on a tie
///
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct GraphSumReLU: GraphConstraint {
  static let method = Method(
    "graph_sum_relu", .constraint,
    "The graph of a rectified sum: lines (a_1, ..., a_n, z) of the last axis with z = max(sum a, 0).",
    rule: """
      project: a - max(sum a, 0)/n, 0;  or t = (z - sum a)/(n + 1): a + t, z - t, and a - sum a/n, 0 where z - t < 0
      the smaller move wins, the second on a tie
      """,
    source: source)
  init(_ h: Hyper) {}
  func nearest(_ x: inout [Double]) {
    let n = x.count - 1, z = x[n], sum = x.dropLast().reduce(0, +), t = (z - sum) / Double(n + 1)
    let down = max(sum, 0) / Double(n)
    let flat = x.dropLast().map { $0 - down } + [0]
    let slanted = z - t < 0 ? x.dropLast().map { $0 - sum / Double(n) } + [0] : x.dropLast().map { $0 + t } + [z - t]
    x = distance(flat, x) < distance(slanted, x) ? flat : slanted
  }
}

/// The graph of a scalar product: lines (a, b, z) with z = ⟨a, b⟩.
///
///     a ← (a + tb)/(1 − t²), b ← (b + ta)/(1 − t²), z ← z − t, with t in (−1, 1) the root of
///     ((1 + t²)p + tq)/(1 − t²)² − z + t, p = ⟨a, b⟩, q = ‖a‖² + ‖b‖²
///
/// The left side rises; Newton's method from 0, and halves of the bracket where it leaves it. a = ±b has no root for
/// some z: t ends at ±(1 − 1e-12).
/// Source   Bergmeister, Lal, Jegelka and Sra, 2025.
struct GraphDot: GraphConstraint {
  static let method = Method(
    "graph_dot", .constraint, "The graph of a scalar product: lines (a, b, z) of the last axis with z = <a, b>.",
    rule: """
      project: (a + t*b)/(1 - t^2), (b + t*a)/(1 - t^2), z - t, t in (-1, 1) the root of
      ((1 + t^2)*p + t*q)/(1 - t^2)^2 - z + t, p = <a, b>, q = |a|^2 + |b|^2
      """,
    source: source, parameters: [.integer("root_steps", 20, .within(1, 1e6), "steps towards the root")])
  static func fits(_ n: Int) throws(Failure) {
    guard n >= 3, n % 2 == 1 else {
      throw Failure(
        Status.shape, "graph_dot: the last axis holds a, b of one length and their product, got a length of \(n)")
    }
  }

  let steps: Int
  init(_ h: Hyper) { steps = h.integer("root_steps") }

  func nearest(_ x: inout [Double]) {
    let d = x.count / 2, z = x[2 * d]
    let p = (0..<d).reduce(0.0) { $0 + x[$1] * x[d + $1] }, q = (0..<(2 * d)).reduce(0.0) { $0 + x[$1] * x[$1] }
    var t = 0.0, low = -(1 - 1e-12), high = 1 - 1e-12
    for _ in 0..<steps {
      let r = 1 - t * t, above = (1 + t * t) * p + t * q
      let value = above / (r * r) - z + t
      if value == 0 { break }
      if value > 0 { high = t } else { low = t }
      let newton = t - value / ((2 * t * p + q) / (r * r) + 4 * t * above / (r * r * r) + 1)
      let next = newton > low && newton < high ? newton : (low + high) / 2
      if abs(next - t) <= 1e-16 { break }
      t = next
    }
    let r = 1 - t * t, old = x
    for i in 0..<d {
      x[i] = (old[i] + t * old[d + i]) / r
      x[d + i] = (old[d + i] + t * old[i]) / r
    }
    x[2 * d] = z - t
  }
}
