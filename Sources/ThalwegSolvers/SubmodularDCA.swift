import Glibc
import ThalwegCore

/// The difference of two submodular set functions, by the difference-of-convex algorithm on their Lovász extensions.
///
///     H = F − G;  y = rho·x + a subgradient of g_L at x: the gains of G along the order of falling x
///     x ← argmin over [0, 1]ⁿ of f_L(u) + rho/2·|u|² − ⟨y, u⟩;   S: the best superlevel set of x
///     stop where H(S) falls by at most tol; local: then go on from the best flip of one element that lowers H
///     accelerate = q: y at z = x + (t − 1)/t'·(x − x before), where h_L(z) is at most the largest of the last q + 1
///
/// Ties in x, there and where sets are cut, are ordered by the gains of H about S, the smallest first (ties=gain), or
/// by those of G, the largest first (ties=gain_g); what differs by rounding alone is a tie. The inner problem is exact:
/// the point of least norm of the base polytope of F − y, by Wolfe's algorithm, over −rho and cut to [0, 1]; with
/// rho = 0 the set of its negative entries. The host is asked for values along whole orders, n sets at once, and for
/// those of all flips. Values of the empty set are taken off.
/// Ends     converged: a local minimum (local), or no fall; max_iter.
/// Differs  the best set that was seen is the answer. Several orders of ties at once, and the complete form, are not
///          here.
/// Source   El Halabi, Orfanides, Hoheisel, 2023, arXiv:2305.11046; Wolfe, 1976; Fujishige, 2005.
struct SubmodularDCA: Driver {
  static let method = Method.solver(
    "submodular_dca", "The difference of two submodular functions, by tangents of the second one's extension.",
    rule: """
      y = rho x + gains of G along falling x;  x <- argmin on [0,1]^n of f_L(u) + rho/2 |u|^2 - <y, u>
      S: the best superlevel set of x for F - G;  round_each: x <- 1_S;  local: single flips at the end
      """,
    source: "El Halabi, Orfanides, Hoheisel, 2023, arXiv:2305.11046",
    parameters: [
      .number("rho", 0.01, .atLeast(0), "quadratic shift"), .number("tol", 1e-6, .atLeast(0), "fall that ends it"),
      .flag("round_each", true, "go on from the rounded set"),
      .maybeInteger("accelerate", .within(0, 1000), "window q of the extrapolation; none: off"),
      .flag("local", true, "flips of single elements at the end"),
      .choice("ties", ["gain", "gain_g"], "order of equal entries"),
      .integer("max_iter", 100, .atLeast(0), "most steps"),
    ],
    inputs: [
      .constant("x0", "n", "where it starts, in [0, 1]"), .result("set", "n", "1 in the set"),
      .result("x", "n", "the last point"), .result("iterations", "", "steps"), .result("value", "", "F - G of the set"),
      .result("residual", "", "the last fall"),
    ],
    asks: [
      RequestKind(
        "chain", "F and G of the first k elements of an order, for every k from 1",
        given: [.given("order", "n", "elements, from 0")],
        wanted: [.wanted("f", "n", "F, less that of the empty set"), .wanted("g", "n", "the same of G")]),
      RequestKind(
        "flips", "F and G of a set with one element exchanged, for every element",
        given: [.given("members", "n", "1 in the set")],
        wanted: [.wanted("f", "n", "F, less that of the empty set"), .wanted("g", "n", "the same of G")]),
    ],
    kept: [
      .kept("order", "n", "an order"), .kept("f_values", "n", "F"), .kept("g_values", "n", "G"),
      .kept("current", "n", "x"), .kept("before", "n", "x before"), .kept("at", "n", "where the tangent touches"),
      .kept("y", "n", "slope of the tangent"), .kept("s", "n", "set of this step"), .kept("ties", "n", "order of ties"),
      .kept("bases", "active, n", "corners of the base polytope"), .kept("weights", "active", "their weights"),
      .kept("point", "n", "the point of least norm so far"), .kept("window", "window", "last values of h_L"),
      .kept("active_count", "", "corners in use"), .kept("t", "", "momentum"),
      .kept("h_set", "", "H of this step's set"),
      .kept("wolfe", "", "steps of Wolfe"), .kept("h_last", "", "H of the step before"),
      .kept("g_set", "", "G of this step's set"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["active": sizes["n"] &+ 1, "window": h.has("accelerate") ? h.integer("accelerate") &+ 1 : 1]
  }
  enum Phase: Int {
    case start, begun, step, tied, extrapolated, touch, tangent, corner, cornered, least, rounded, flipped
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["current"], y = try io["y"], s = try io["s"], ties = try io["ties"], at = try io["at"]
    let order = try io["order"], f = try io["f_values"], g = try io["g_values"], before = try io["before"], n = x.count
    func sort(_ v: Vector<T>) {
      // falling; of equal entries the one that stands first in `ties`
      let sorted = (0..<n).sorted { (i: Int, j: Int) -> Bool in
        if v.p[i] != v.p[j] { return v.p[i] > v.p[j] }
        return ties.p[i] != ties.p[j] ? ties.p[i] < ties.p[j] : i < j
      }
      for (k, i) in sorted.enumerated() { order.p[k] = T(i) }
    }
    func element(_ k: Int) -> Int { order.p[k] >= 0 && order.p[k] < T(n) ? Int(order.p[k]) : 0 }
    /// The value of an extension along `order`, from those of its sets.
    func extend(_ v: Vector<T>) -> Double {
      (0..<n).reduce(0.0) { sum, k in
        let here = Double(f.p[k]) - Double(g.p[k]), last = k > 0 ? Double(f.p[k - 1]) - Double(g.p[k - 1]) : 0
        return sum + Double(v.p[element(k)]) * (here - last)
      }
    }
    switch phase {
    case .start:
      x.copy(try io["x0"])
      guard (0..<n).allSatisfy({ x.p[$0] >= 0 && x.p[$0] <= 1 }) else {
        throw Failure(Status.range, "`x0` must lie in [0, 1]")
      }
      before.copy(x)
      try io["x"].copy(x)
      io.t = 1
      sort(x)
      return .ask("chain", [order], [f, g], then: .begun)
    case .begun:
      // the entries of 1 stand first
      for i in 0..<n { s.p[i] = x.p[i] == 1 ? 1 : 0 }
      let size = (0..<n).reduce(0) { $0 + (s.p[$1] == 1 ? 1 : 0) }
      if size > 0 { (io.h_set, io.g_set) = (Double(f.p[size - 1]) - Double(g.p[size - 1]), Double(g.p[size - 1])) }
      io.value = io.h_set
      io.h_last = h.round_each ? io.h_set : extend(x)
      try io["set"].copy(s)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("flips", [s], [f, g], then: .tied)
    case .tied:
      // H(S + i) − H(S − i), or that of G with the largest first
      for i in 0..<n {
        let own = Double(g.p[i]), gain = h.is("ties", "gain") ? Double(f.p[i]) - own - io.h_set : io.g_set - own
        ties.p[i] = T(s.p[i] == 1 ? -gain : gain)
      }
      at.copy(x)
      guard h.has("accelerate") else { return .go(.touch) }
      let next = (1 + (1 + 4 * io.t * io.t).squareRoot()) / 2
      at.set(1 + (io.t - 1) / next, x, -(io.t - 1) / next, before)
      io.t = next
      sort(at)
      return .ask("chain", [order], [f, g], then: .extrapolated)
    case .extrapolated:
      let window = try io["window"]
      if extend(at) > (0..<window.count).reduce(-.infinity, { max($0, Double(window.p[$1])) }) { at.copy(x) }
      return .go(.touch)
    case .touch:
      sort(at)
      return .ask("chain", [order], [f, g], then: .tangent)
    case .tangent:
      for k in 0..<n {
        let i = element(k)
        let last = k > 0 ? Double(g.p[k - 1]) : 0
        y.p[i] = T(h.rho * Double(at.p[i]) + Double(g.p[k]) - last)
      }
      (io.active_count, io.wolfe) = (0, 0)
      try io["point"].fill(0)
      return .go(.corner)
    case .corner:
      // the corner of the polytope of F − y that is least along the point: gains along the order of rising entries
      let point = try io["point"]
      at.set(-1, point)
      sort(at)
      return .ask("chain", [order], [f, g], then: .cornered)
    case .cornered:
      return try corner(io, f, y, order: (0..<n).map(element)) ? .go(.least) : .go(.corner)
    case .least:
      let point = try io["point"]
      before.copy(x)
      for i in 0..<n {
        x.p[i] = h.rho > 0 ? T(min(max(-Double(point.p[i]) / h.rho, 0), 1)) : point.p[i] < 0 ? 1 : 0
      }
      sort(x)
      for k in 1..<max(1, n) where abs(x.p[element(k)] - x.p[element(k - 1)]) <= (T.isDouble ? 1e-9 : 1e-4) {
        x.p[element(k)] = x.p[element(k - 1)]
      }
      sort(x)
      return .ask("chain", [order], [f, g], then: .rounded)
    case .rounded:
      var best = 0.0, size = 0
      for k in 0..<n {
        let value = Double(f.p[k]) - Double(g.p[k])
        if value < best { (best, size) = (value, k + 1) }
      }
      let extended = extend(x)
      s.fill(0)
      for k in 0..<size { s.p[element(k)] = 1 }
      io.iterations += 1
      let value = h.round_each ? best : extended
      io.residual = io.h_last - value
      (io.h_set, io.g_set, io.h_last) = (best, size > 0 ? Double(g.p[size - 1]) : 0, value)
      if h.round_each { x.copy(s) }
      let window = try io["window"]
      for k in (1..<max(1, window.count)).reversed() { window.p[k] = window.p[k - 1] }
      window.p[0] = T(h.round_each ? best : extended)
      try keep(io, s, best)
      try io["x"].copy(x)
      if io.residual > h.tol { return .go(.step) }
      if !h.local { return .done(.converged) }
      s.copy(try io["set"])
      io.h_set = io.value
      return .ask("flips", [s], [f, g], then: .flipped)
    case .flipped:
      var best = io.h_set, flip: Int?
      let least = 1e-12 * max(1, abs(io.h_set))
      for i in 0..<n {
        let value = Double(f.p[i]) - Double(g.p[i])
        if value < best - least { (best, flip) = (value, i) }
      }
      guard let flip else { return .done(.converged) }
      s.p[flip] = 1 - s.p[flip]
      x.copy(s)
      before.copy(s)
      (io.h_set, io.g_set, io.h_last) = (best, Double(g.p[flip]), best)
      try keep(io, s, best)
      try io["x"].copy(x)
      return .go(.step)
    }
  }
  private func keep<T: Real>(_ io: DriverIO<T>, _ s: Vector<T>, _ value: Double) throws(Failure) {
    if value < io.value {
      io.value = value
      try io["set"].copy(s)
    }
  }

  /// A step of Wolfe with the corner along `order`; whether the point is the one of least norm.
  private func corner<T: Real>(_ io: DriverIO<T>, _ f: Vector<T>, _ y: Vector<T>, order: [Int]) throws(Failure) -> Bool
  {
    let bases = try io["bases"], weights = try io["weights"], point = try io["point"], n = y.count
    var active = try io.count("active_count", n + 1)
    var new = [Double](repeating: 0, count: n)
    for (k, i) in order.enumerated() {
      let last = k > 0 ? Double(f.p[k - 1]) : 0
      new[i] = Double(f.p[k]) - last - Double(y.p[i])
    }
    let square = point.dot(point)
    var along = 0.0, scale = 0.0
    for i in 0..<n {
      along += new[i] * Double(point.p[i])
      scale += new[i] * new[i]
    }
    io.wolfe += 1
    if active > 0, square - along <= (T.isDouble ? 1e-13 : 1e-6) * max(square, scale) { return true }
    if active > n || io.wolfe > Double(50 * (n + 2)) { return true }
    for i in 0..<n { bases.p[active * n + i] = T(new[i]) }
    weights.p[active] = active == 0 ? 1 : 0
    active += 1
    try Memory.ask(16 &* (active + 1) &* (active + 1))
    while true {
      // the point of least norm of the affine hull: (G + 1·1ᵀ)·a = 1, scaled to sum 1
      var gram = [Double](repeating: 1, count: active * active)
      for i in 0..<active {
        for j in 0..<active { gram[i * active + j] += bases.row(i).dot(bases.row(j)) }
      }
      var a = try LinearAlgebra.solve(gram, [Double](repeating: 1, count: active), active, 1)
      let sum = a.reduce(0, +)
      for i in a.indices { a[i] /= sum }
      if a.allSatisfy({ $0 >= -1e-12 }) {
        for i in a.indices { weights.p[i] = T(max(a[i], 0)) }
        break
      }
      // towards it, until the first weight is 0
      var step = 1.0
      for i in a.indices where a[i] < 0 { step = min(step, Double(weights.p[i]) / (Double(weights.p[i]) - a[i])) }
      var kept = 0
      for i in a.indices {
        let w = (1 - step) * Double(weights.p[i]) + step * a[i]
        if w > 1e-12 {
          if kept != i { bases.row(kept).copy(bases.row(i)) }
          weights.p[kept] = T(w)
          kept += 1
        }
      }
      active = max(1, kept)
    }
    point.fill(0)
    for i in 0..<active { point.add(bases.row(i), times: Double(weights.p[i])) }
    io.active_count = Double(active)
    return false
  }
}
