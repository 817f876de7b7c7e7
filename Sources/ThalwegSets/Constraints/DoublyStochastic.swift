import Glibc
import ThalwegCore

/// Square matrices that are not negative, with rows and columns of sum 1: relaxed permutations.
///
///     euclidean  the nearest one: Dykstra's iteration between {rows and columns have sum 1} and {entries ≥ 0}
///     sinkhorn   exp of L = w/temperature after `iters` sweeps: L − its row log-sum-exps, then − those of its columns
///     argmin⟨G, P⟩: the permutation of least cost, by shortest augmenting paths
///
/// The iteration of Dykstra stops when no entry moves by more than tol; a matrix that is inside to rounding stays bit
/// for bit. A low temperature tends to a permutation.
/// Errors   TW_ERROR_SHAPE where the matrix view is not square.
/// Differs  jaxopt's projection_birkhoff is the euclidean form up to its own tolerance.
/// Source   Sinkhorn and Knopp, 1967; Boyle and Dykstra, 1986; Jonker and Volgenant, 1987.
struct DoublyStochastic: WholeConstraint {
  static let method = Method(
    "doubly_stochastic", .constraint, "Square matrices >= 0 whose rows and columns have sum 1: relaxed permutations.",
    rule: """
      euclidean: Dykstra between {rows and columns have sum 1} and {w >= 0}
      sinkhorn: L = w/temperature, rows and columns less their log-sum-exp by turns, exp(L)
      argmin <g, p>: the permutation of least cost
      """,
    source: "Sinkhorn, Knopp, 1967; Boyle, Dykstra, 1986; Jonker, Volgenant, 1987",
    parameters: [
      .integer("iters", 100, .within(1, 1e9), "sweeps"),
      .number("temperature", 1, .above(0), "sinkhorn: divides the scores"),
      .number("tol", 1e-6, .atLeast(0), "euclidean: largest move that stops the iteration"),
      .choice("projection", ["euclidean", "sinkhorn"], "which point of the set"),
    ])
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard shape.ndim >= 2, shape.rows == shape.columns else {
      throw Failure(
        Status.shape, "doubly_stochastic needs a square matrix view, got a tensor of shape \(shape.dimensions)")
    }
  }

  let sweeps: Int, temperature, tol: Double, euclidean: Bool
  init(_ h: Hyper) {
    (sweeps, temperature, tol, euclidean) = (
      h.integer("iters"), h.temperature, h.tol, h.is("projection", "euclidean")
    )
  }

  func project<T: Real>(_ w: Whole<T>) throws(Failure) {
    let x = try doubles(w.v, w.count, "doubly_stochastic"), n = w.rows
    if n == 0 { return }
    if !euclidean { return sinkhorn(x.map { $0 / temperature }, n, w.v) }
    let (rows, columns) = sums(x, n), near = slack(n, T.self) * 4
    if x.allSatisfy({ $0 >= 0 }), (rows + columns).allSatisfy({ abs($0 - 1) <= near }) { return }
    var point = x, correction = x.map { _ in 0.0 }
    for _ in 0..<sweeps {
      let (rows, columns) = sums(point, n), total = rows.reduce(0, +) - Double(n)
      var moved = 0.0
      for i in point.indices {
        let excess = (rows[i / n] - 1 + columns[i % n] - 1) / Double(n) - total / Double(n * n)
        let flat = point[i] - excess + correction[i], next = max(flat, 0)
        correction[i] = flat - next
        moved = max(moved, abs(next - point[i]))
        point[i] = next
      }
      if moved <= tol { break }
    }
    for i in point.indices { w.v[i] = T(point[i]) }
  }
  private func sums(_ x: [Double], _ n: Int) -> (rows: [Double], columns: [Double]) {
    var rows = [Double](repeating: 0, count: n), columns = rows
    for i in x.indices {
      rows[i / n] += x[i]
      columns[i % n] += x[i]
    }
    return (rows, columns)
  }
  private func sinkhorn<T: Real>(_ scores: [Double], _ n: Int, _ out: UnsafeMutablePointer<T>) {
    var l = scores
    func normalise(_ entry: (Int, Int) -> Int) {
      for a in 0..<n {
        let top = (0..<n).reduce(-Double.infinity) { max($0, l[entry(a, $1)]) }
        let log = top + Glibc.log((0..<n).reduce(0.0) { $0 + exp(l[entry(a, $1)] - top) })
        for b in 0..<n { l[entry(a, b)] -= log }
      }
    }
    for _ in 0..<sweeps {
      normalise { $0 * n + $1 }
      normalise { $1 * n + $0 }
    }
    for i in l.indices { out[i] = T(exp(l[i])) }
  }

  static var minimises: Bool { true }
  func minimise<T: Real>(_ w: Whole<T>) throws(Failure) {
    let cost = try doubles(w.v, w.count, "doubly_stochastic"), n = w.rows
    let column = assignment(cost, n)
    for i in 0..<n { for j in 0..<n { w.v[i * n + j] = column[i] == j ? 1 : 0 } }
  }
  /// The column of every row in an assignment of least cost. Row and column prices keep all reduced costs at 0 or
  /// more; each new row ends a shortest path to a free column.
  private func assignment(_ cost: [Double], _ n: Int) -> [Int] {
    var rowPrice = [Double](repeating: 0, count: n), columnPrice = rowPrice
    var rowOf = [Int](repeating: -1, count: n)  // of every column
    for start in 0..<n {
      var distance = [Double](repeating: .infinity, count: n), before = [Int](repeating: -1, count: n)
      var done = [Bool](repeating: false, count: n)
      var row = start, reached = -1, length = 0.0
      while true {
        var nearest = -1
        for j in 0..<n where !done[j] {
          let d = length + cost[row * n + j] - rowPrice[row] - columnPrice[j]
          if d < distance[j] { (distance[j], before[j]) = (d, reached) }
          if nearest < 0 || distance[j] < distance[nearest] { nearest = j }
        }
        if nearest < 0 { break }
        (reached, length) = (nearest, distance[nearest])
        done[nearest] = true
        if rowOf[nearest] < 0 { break }
        row = rowOf[nearest]
      }
      if reached < 0 { continue }
      rowPrice[start] += length
      for j in 0..<n where done[j] && j != reached {
        if rowOf[j] >= 0 { rowPrice[rowOf[j]] += length - distance[j] }
        columnPrice[j] -= length - distance[j]
      }
      while reached >= 0 {
        let previous = before[reached]
        rowOf[reached] = previous < 0 ? start : rowOf[previous]
        reached = previous
      }
    }
    var out = [Int](repeating: 0, count: n)
    for j in 0..<n where rowOf[j] >= 0 { out[rowOf[j]] = j }
    return out
  }
}
