import Glibc
import ThalwegCore

/// Few-shot inference by clustering all queries at once: prototypes of classes, with neighbours that should agree.
///
///     W: 0/1 graph of the k nearest queries of each query, symmetrised by the maximum;  Z = 0 at first
///     θ_k = (Σ_{support of k} f + Σ_q z_qk·f_q)/(n_k + Σ_q z_qk);  a_qk = |f_q − θ_k|²/T
///     `inner` times, all rows at once: Z ← softmax(−a + λ·W·Z)
///
/// queries is (n, d), support is (s, d), y is (s,): labels from 0 to classes − 1. `objective` holds, for every outer
/// step, Σ Z·a + Σ_support |f − θ_y|²/T + Σ Z·log Z − λ/2·Σ Z∘(W·Z); it does not rise where W is positive semidefinite.
/// Errors   TW_ERROR_RANGE: a label outside, a class without support, or features that are not finite.
/// Ends     converged: after `steps` outer steps.
/// Differs  ties between neighbours go to the smallest index; the form with k-means prototypes is the card's, those
///          with
///          k-modes or the largest of the support are not carried.
/// Source   Ziko, Boudiaf, Dolz, Granger, Ben Ayed, 2021, arXiv:2106.09516.
struct TransductiveClustering: Driver {
  static let method = Method.solver(
    "transductive_clustering", "Few-shot inference by clustering all queries at once.",
    rule: """
      theta_k: mean of the support of k and of the queries, by Z;  a_qk = |f_q - theta_k|^2/temperature
      inner times: Z <- softmax(-a + lam W Z), W the symmetrised graph of knn nearest neighbours
      """,
    source: "Ziko, Boudiaf, Dolz, Granger, Ben Ayed, 2021, arXiv:2106.09516",
    parameters: [
      .integer("classes", nil, .within(1, 1e6), "K"), .number("lam", 0.7, .atLeast(0), "weight of the graph"),
      .integer("knn", 3, .atLeast(1), "neighbours of a query"), .integer("steps", 20, .within(1, 1e9), "outer steps"),
      .integer("inner", 10, .atLeast(1), "updates of Z in each"),
      .number("temperature", 1, .above(0), "divides squared distances"),
    ],
    inputs: [
      .constant("queries", "n, d", "features to label"), .constant("support", "s, d", "labelled features"),
      .integer("y", "s", "their labels, from 0 to classes - 1"),
      .result("z", "n, classes", "assignments"), .result("prototypes", "classes, d", "theta"),
      .result("labels", "n", "the most likely class of each query"),
      .result("objective", "steps", "objective after every outer step"),
    ],
    kept: [.kept("a", "n, classes", "distances"), .kept("wz", "n, classes", "W Z")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let f = try io["queries"], support = try io["support"], y = try io.integers("y"), z = try io["z"]
    let theta = try io["prototypes"], a = try io["a"], wz = try io["wz"], objective = try io["objective"]
    let n = f.rows, s = support.rows, d = theta.count / theta.rows, classes = theta.rows
    guard f.isFinite, support.isFinite else { throw Failure(Status.range, "the features must be finite") }
    var counts = [Int](repeating: 0, count: classes)
    for i in 0..<s {
      guard y[i] >= 0, y[i] < classes else {
        throw Failure(Status.range, "`y` must hold labels from 0 to \(classes - 1), got \(y[i]) at element \(i)")
      }
      counts[y[i]] += 1
    }
    if let empty = counts.firstIndex(of: 0) { throw Failure(Status.range, "class \(empty) has no support") }
    let graph = try neighbours(f, n, d), temperature: Double = h.temperature, lam: Double = h.lam
    for step in 0..<objective.count {
      // prototypes
      var mass = counts.map { Double($0) }
      theta.fill(0)
      for i in 0..<s { theta.row(y[i]).add(support.row(i)) }
      for q in 0..<n {
        for k in 0..<classes {
          theta.row(k).add(f.row(q), times: Double(z.p[q * classes + k]))
          mass[k] += Double(z.p[q * classes + k])
        }
      }
      for k in 0..<classes { theta.row(k).set(1 / mass[k], theta.row(k)) }
      for q in 0..<n {
        for k in 0..<classes { a.p[q * classes + k] = T(squaredDistance(f.row(q), theta.row(k)) / temperature) }
      }
      // assignments
      for _ in 0..<h.integer("inner") {
        spread(graph, z, wz, classes)
        for q in 0..<n {
          let row = (0..<classes).map { lam * Double(wz.p[q * classes + $0]) - Double(a.p[q * classes + $0]) }
          let top = row.reduce(-Double.infinity) { max($0, $1) }, e = row.map { exp($0 - top) }, sum = e.reduce(0, +)
          for k in 0..<classes { z.p[q * classes + k] = T(e[k] / sum) }
        }
      }
      spread(graph, z, wz, classes)
      var value = 0.0
      for i in 0..<(n * classes) {
        let p = Double(z.p[i])
        value += p * (Double(a.p[i]) - lam / 2 * Double(wz.p[i])) + (p > 0 ? p * log(p) : 0)
      }
      for i in 0..<s { value += squaredDistance(support.row(i), theta.row(y[i])) / temperature }
      objective.p[step] = T(value)
    }
    let labels = try io["labels"]
    for q in 0..<n {
      var top = 0
      for k in 0..<classes where z.p[q * classes + k] > z.p[q * classes + top] { top = k }
      labels.p[q] = T(top)
    }
    return .done(.converged)
  }

  private func squaredDistance<T: Real>(_ x: Vector<T>, _ y: Vector<T>) -> Double {
    let r = x.distance(y)
    return r * r
  }
  /// The neighbours of every query in the symmetrised graph.
  private func neighbours<T: Real>(_ f: Vector<T>, _ n: Int, _ d: Int) throws(Failure) -> [[Int]] {
    let wanted = min(h.integer("knn"), n - 1)
    try Memory.ask(16 * n * (wanted + 4))
    var out = [Set<Int>](repeating: [], count: n)
    for i in 0..<n {
      let order = (0..<n).filter { $0 != i }.map { (f.row(i).distance(f.row($0)), $0) }.sorted { $0 < $1 }
      for (_, j) in order.prefix(max(wanted, 0)) {
        out[i].insert(j)
        out[j].insert(i)
      }
    }
    return out.map { $0.sorted() }
  }
  /// wz ← W·Z.
  private func spread<T: Real>(_ graph: [[Int]], _ z: Vector<T>, _ wz: Vector<T>, _ classes: Int) {
    wz.fill(0)
    for (q, others) in graph.enumerated() {
      for j in others { for k in 0..<classes { wz.p[q * classes + k] += z.p[j * classes + k] } }
    }
  }
}
