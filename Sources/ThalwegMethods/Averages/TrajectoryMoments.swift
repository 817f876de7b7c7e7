import ThalwegCore

/// Time averages of a walk on the sphere, and the direction that they estimate.
///
///     order 1:  m ← m + (θ − m)/t;      evaluation weights: m/‖m‖
///     order 2:  M ← M + (θθᵀ − M)/t;    evaluation weights: the leading eigenvector of M, on the side of θ
///
/// Every tensor is one vector, of length 1 as the rules of this family keep it (`spherical_langevin`).
///
/// State    order 1: m; order 2: M, n × n numbers for a tensor of n.
/// Differs  while m or M is 0 there is no estimate: the weights are θ. The sign of the eigenvector is free; the side of
///          the present θ is taken.
/// Errors   order 2 for a tensor of more than 2,048 elements.
/// Source   arXiv:2603.06028.
struct TrajectoryMoments: WholeRule {
  static let method = Method(
    "trajectory_moments", .average,
    "Time averages of a walk on the sphere; the direction that they estimate is the evaluation weights.",
    rule: """
      order 1: m <- m + (theta - m)/t;  evaluation weights: m/|m|
      order 2: M <- M + (theta theta' - M)/t;  evaluation weights: the leading eigenvector of M, on the side of theta
      """,
    source: "arXiv:2603.06028",
    parameters: [.integer("order", 1, .within(1, 2), "1: the mean; 2: the mean of the outer products", live: false)],
    slots: [Slot("mean", "the mean m"), Slot("moment", "the second moments M, row after row")])

  private static let largest = 2048
  private static func isSecond(_ h: Hyper) -> Bool { h.integer("order") == 2 }

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    guard isSecond(h) else { return [method.slots[0]] }
    let n = min(shape.count, largest)
    var moment = method.slots[1]
    moment.count = n * n
    return [moment]
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard !isSecond(h) || shape.count <= largest else {
      throw Failure(
        Status.shape,
        "trajectory_moments: order 2 takes tensors of at most \(largest) elements, got \(shape.dimensions)")
    }
  }
  static var evaluates: Bool { true }
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? { 1 }

  let second: Bool
  let share: Double

  init(_ h: Hyper, _ c: StepContext) { (second, share) = (TrajectoryMoments.isSecond(h), 1 / c.time) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let n = t.count, s = t.slots[0]
    func average(_ p: UnsafeMutablePointer<T>, _ factor: Double) {
      Flat.combine(1 - share, p, share * factor, t.v, into: p, n)
    }
    guard second else { return average(s, 1) }
    for i in 0..<n { average(s + i * n, Double(t.v[i])) }
  }

  func evaluate<T: Real>(_ t: Whole<T>) throws(Failure) {
    let n = t.count, s = t.slots[0]
    guard second else {
      let length = Flat.norm(s, n)
      if length > 0, length.isFinite { Flat.scale(s, by: 1 / length, into: t.v, n) }
      return
    }
    guard Flat.norm(s, n * n) > 0 else { return }
    let axis = try LinearAlgebra.SVD(s, n, n).vt.prefix(n)  // of a positive semidefinite matrix: its eigenvectors
    let side = zip(axis, 0..<n).reduce(0) { $0 + $1.0 * Double(t.v[$1.1]) }
    for (i, x) in axis.enumerated() { t.v[i] = T(side < 0 ? -x : x) }
  }
}
