import ThalwegCore

/// A client's round of federated descent without gradients: those of a Gaussian process of its own queries, corrected
/// by what all clients know.
///
///     y of the `max_queries` points nearest to x, scaled to [0, 1];   g = ∇ of the posterior mean at x, scaled back
///     g ← g + gamma·(∇global(x) − ∇local(x)),  both of random Fourier features, where their weights are given
///     x ← x − lr·g;   the loss at x joins the points;   `steps` times
///     then losses at `active` of `candidates` points around the last x, where gradients are least certain
///     weights = features of the points nearest to x, as `rff_surrogate`;  what leaves the client is x and these
///
/// The server's x is the weighted mean of the clients' (`fedavg`), its weights are the sum of theirs. frequencies W and
/// phases b are shared by all clients, given or drawn.
/// Ends     max_iter: the round is over; nonfinite: a loss is none.
/// Errors   TW_ERROR_NEEDS: weights of the others without the client's own. TW_ERROR_NUMERIC: the kernel's matrix is
///          not positive definite: points that are twice there need noise.
/// Differs  the step is plain descent. Candidate j is x + radius·(draw j of (seed, 0, 3, 0)); its uncertainty is the
///          trace of the gradient's posterior covariance, all of them are taken at once. Equal values have gradient 0.
///          Weights stand for y less its minimum, which no gradient knows; so gamma·(global − local) has their scale.
/// Source   Shu, Lin, Dai, Low, 2023, arXiv:2308.04077.
struct FZooSClient: Driver {
  static let method = Method.solver(
    "fzoos_client", "A client's round of federated descent along gradients that a Gaussian process predicts.",
    rule: """
      g = gradient of the posterior mean of the nearest queries + gamma (grad global(x) - grad local(x))
      x <- x - lr g;  the loss at x joins the queries;  at the end weights of random Fourier features for the others
      """,
    source: "Shu, Lin, Dai, Low, 2023, arXiv:2308.04077",
    parameters: [.number("lr", nil, .above(0), "step size"), .integer("steps", 10, .within(1, 0x1p20), "of the round")]
      + ProcessKernel.parameters() + [
        .integer("max_queries", 150, .within(1, 65536), "points that predict a gradient"),
        .number("gamma", 1, .atLeast(0), "weight of the correction"),
        .integer("active", 5, .within(0, 0x1p20), "losses asked for at the end, for the weights"),
        .integer("candidates", 50, .within(1, 0x1p20), "points of which these are chosen"),
        .number("radius", 1e-2, .above(0), "their standard deviation around x"), Features<Double>.count,
        Population.seed,
      ],
    inputs: [
      .constant("x0", "d", "where all clients start"), .constant("points", "q, d", "earlier queries"),
      .constant("values", "q", "their losses"),
      .constant("global_weights", "M", "of the features, all clients'", optional: true),
      .constant("local_weights", "M", "of the features, this client's", optional: true),
    ] + Features<Double>.inputs + [
      .result("x", "d", "the point"), .result("weights", "M", "of the features"),
      .result("queries", "all, d", "all points whose loss is known"), .result("losses", "all", "their losses"),
      .result("iterations", "", "steps"), .result("value", "", "the last loss"),
    ],
    asks: [
      RequestKind(
        "point_loss", "the loss at a point", given: [.given("point", "d", "where")],
        wanted: [.wanted("loss", "", "the loss there")], takesNonfinite: true)
    ],
    kept: Features<Double>.kept + [.kept("known", "", "queries so far"), .kept("z", "candidates, d", "candidates")],
    validate: { (h) throws(Failure) in
      guard h.active <= h.candidates else {
        throw Failure(
          Status.range,
          "fzoos_client: `active` must not be above `candidates`, got \(h.integer("active")) and "
            + "\(h.integer("candidates"))")
      }
    })

  private let h: Hyper, kernel: ProcessKernel
  init(_ h: Hyper) { (self.h, kernel) = (h, ProcessKernel(h)) }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    Features<Double>.axes(sizes, h).merging(["all": sizes["q"] + h.integer("steps") + h.integer("active")]) { $1 }
  }
  enum Phase: Int { case start, step, answered }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], X = try io["queries"], y = try io["losses"], z = try io["z"]
    let known = try io.count("known", X.rows), first = X.rows - h.integer("active")
    switch phase {
    case .start:
      guard (io.optional("global_weights") == nil) == (io.optional("local_weights") == nil) else {
        throw Failure(Status.needs, "fzoos_client: global_weights and local_weights go together")
      }
      let points = try io["points"]
      guard points.isFinite, try io["values"].isFinite else { return .done(.nonfinite) }
      x.copy(try io["x0"])
      X.copy(points)
      y.copy(try io["values"])
      io.known = Double(points.rows)
      _ = try Features(io, kernel, h)
      return .go(.step)
    case .step:
      if known == X.rows { return try finish(io) }
      if known < first {
        x.add(try gradient(io, known), times: -h.lr)
        X.row(known).copy(x)
        io.iterations += 1
      } else {
        if known == first { try candidates(io) }
        X.row(known).copy(z.row(known - first))
      }
      return .ask("point_loss", [X.row(known)], [], then: .answered)
    case .answered:
      guard io.loss.isFinite else { return .done(.nonfinite) }
      y.p[known] = T(io.loss)
      io.value = io.loss
      io.known += 1
      return .go(.step)
    }
  }

  /// The numbers of the known points nearest to x, and their values, scaled, with their range.
  private func near<T: Real>(_ io: DriverIO<T>, _ known: Int) throws(Failure)
    -> (points: [Int], values: [Double], range: Double)
  {
    let x = try io["x"], X = try io["queries"], y = try io["losses"], d = x.count
    let distances = (0..<known).map { ProcessKernel.distance(UnsafePointer(X.p + $0 * d), UnsafePointer(x.p), d) }
    let order = distances.indices.sorted { (distances[$0], $0) < (distances[$1], $1) }
    let points = order.prefix(h.integer("max_queries")).sorted(), values = points.map { Double(y.p[$0]) }
    let low = values.min() ?? 0, range = (values.max() ?? 0) - low
    return (points, range > 0 ? values.map { ($0 - low) / range } : values.map { _ in 0 }, range)
  }

  /// ∂k(z, x_i)/∂z, a row for each point.
  private func slopes<T: Real>(_ z: Vector<T>, _ points: [Int], _ X: Vector<T>) -> [Double] {
    let d = z.count
    return points.flatMap { i in
      let row = X.p + i * d, slope = kernel.at(ProcessKernel.distance(UnsafePointer(z.p), UnsafePointer(row), d)).slope
      return (0..<d).map { slope * (Double(z.p[$0]) - Double(row[$0])) }
    }
  }

  /// The gradient at x, in what will hold the loss's point.
  private func gradient<T: Real>(_ io: DriverIO<T>, _ known: Int) throws(Failure) -> Vector<T> {
    let x = try io["x"], X = try io["queries"], d = x.count, out = X.row(known)
    let (points, values, range) = try near(io, known)
    var g = [Double](repeating: 0, count: d)
    if range > 0 {
      try Memory.ask(8 &* points.count &* (2 &* points.count &+ d))
      let alpha = try LinearAlgebra.solvePositive(kernel.matrix(points, X), values, points.count, 1)
      let rows = slopes(x, points, X)
      for i in points.indices { for j in 0..<d { g[j] += range * alpha[i] * rows[i * d + j] } }
    }
    if let all = io.optional("global_weights"), let own = io.optional("local_weights") {
      let features = try Features(again: io, kernel)
      let difference = (0..<all.count).map { Double(all.p[$0]) - Double(own.p[$0]) }
      for (j, c) in features.at(x, difference).gradient.enumerated() { g[j] += h.gamma * c }
    }
    for j in 0..<d { out.p[j] = T(g[j]) }
    return out
  }

  /// The first rows of z become the points around x whose gradients are least certain, the least certain first.
  private func candidates<T: Real>(_ io: DriverIO<T>) throws(Failure) {
    let x = try io["x"], X = try io["queries"], z = try io["z"], d = x.count
    z.draw(Population.key(h, 3))
    let (points, _, _) = try near(io, try io.count("known", X.rows)), n = points.count
    try Memory.ask(8 &* n &* (2 &* n &+ d))
    let K = kernel.matrix(points, X)
    var certainty: [Double] = []
    for j in 0..<z.rows {
      let row = z.row(j)
      row.set(1, x, h.radius, row)
      // the prior's part is the same everywhere
      let slopes = slopes(row, points, X), solved = try LinearAlgebra.solvePositive(K, slopes, n, d)
      certainty.append(zip(slopes, solved).reduce(0) { $0 + $1.0 * $1.1 })
    }
    let order = certainty.indices.sorted { (certainty[$0], $0) < (certainty[$1], $1) }
    let copies = order.prefix(h.integer("active")).map { k in (0..<d).map { z.p[k * d + $0] } }
    for (j, values) in copies.enumerated() { for i in 0..<d { z.p[j * d + i] = values[i] } }
  }

  private func finish<T: Real>(_ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let X = try io["queries"], weights = try io["weights"], (points, values, range) = try near(io, X.rows)
    let found = try Features(again: io, kernel).weights(points.map { X.row($0) }, values)
    for m in found.indices { weights.p[m] = T(range * found[m]) }
    return .done(.maxIter)
  }
}
