import Glibc
import ThalwegCore

extension RequestKind {
  /// A gradient of one client, of its own data.
  static let clientGradient = RequestKind(
    "client_gradient", "the gradient of one client's loss at a point",
    given: [.given("client", "", "which client, from 0"), .given("point", "n", "where")],
    wanted: [.wanted("gradient", "n", "the gradient there")])
}

/// What methods of several clients share: the server's start, and how many there are of what.
private enum Clients {
  static let number = Parameter.integer("clients", nil, .within(1, 0x1p24), "how many clients there are")
  static let steps = Parameter.integer("steps", 10, .atLeast(1), "local steps of a round")
  static func rounds(_ standard: Int = 100) -> Parameter { .integer("max_iter", standard, .atLeast(0), "rounds") }
  static let start = Input.constant("x0", "n", "the parameters to start with")
  static let participants = Input.integer(
    "participants", "rounds, s", "who takes part in each round, in turn; all when left out", optional: true)
  static let result: [Input] = [.result("x", "n", "the server's parameters"), .result("iterations", "", "rounds")]

  /// Who takes part in the present round.
  static func present<T: Real>(_ io: DriverIO<T>, _ clients: Int) throws(Failure) -> [Int] {
    guard io.sizes["s"] > 0 else { return Array(0..<clients) }
    let list = try io.integers("participants"), s = io.sizes["s"], rounds = io.sizes["rounds"]
    let first = try io.count("iterations") % max(1, rounds) * s
    let found = (0..<s).map { list[first + $0] }
    for i in found where i < 0 || i >= clients {
      throw Failure(Status.range, "`participants` must hold clients from 0 to \(clients - 1), got \(i)")
    }
    return found
  }
}

/// SCAFFOLD: local steps whose drift a pair of control variates takes out.
///
///     client i:  w = x;  K times: w ← w − lr_local·(∇f_i(w) − c_i + c)
///                c_i⁺ = c_i − c + (x − w)/(K·lr_local)  (option II), or ∇f_i(x)  (option I)
///     server:    x ← x + lr_global·mean(w − x);   c ← c + |S|/N·mean(c_i⁺ − c_i),   over the participants S of N
///
/// Ends     max_iter.
/// Differs  local steps are plain ones: momentum would break K·lr_local.
/// Source   Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, 2019, arXiv:1910.06378.
struct SCAFFOLD: Driver {
  static let method = Method.solver(
    "scaffold", "SCAFFOLD: federated averaging with control variates.",
    rule: """
      client: w = x;  K times: w <- w - lr_local (grad_i(w) - c_i + c);  c_i+ = c_i - c + (x - w)/(K lr_local)
      server: x <- x + lr_global mean(w - x);  c <- c + |S|/N mean(c_i+ - c_i)
      """,
    source: "Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, 2019, arXiv:1910.06378",
    parameters: [
      Clients.number, Clients.steps, .number("lr_local", 0.1, .above(0), "step of a client"),
      .number("lr_global", 1, .above(0), "step of the server"),
      .choice("option", ["II", "I"], "the new control: from the way gone, or the gradient at the start"),
      Clients.rounds(),
    ],
    inputs: [Clients.start, Clients.participants] + Clients.result + [
      .result("control", "n", "the server's control variate c"),
      .result("controls", "clients, n", "those of the clients"),
    ],
    asks: [.clientGradient],
    kept: [
      .kept("w", "n", "the client's parameters"), .kept("g", "n", "its gradient"), .kept("new", "n", "its new control"),
      .kept("moves", "n", "sum of the ways gone"), .kept("changes", "n", "sum of the changes of the controls"),
      .kept("client", "", "who is at work"), .kept("turn", "", "how many were before"),
      .kept("tries", "", "local steps done"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, round, client, begin, step }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], w = try io["w"], g = try io["g"], new = try io["new"], c = try io["control"]
    let controls = try io["controls"], moves = try io["moves"], changes = try io["changes"]
    let steps = Double(h.integer("steps")), clients = controls.rows, there = try Clients.present(io, clients)
    let mine = controls.row(try io.count("client", clients))
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.round)
    case .round:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      moves.fill(0)
      changes.fill(0)
      io.turn = 0
      return .go(.client)
    case .client:
      let turn = try io.count("turn", there.count)
      guard turn < there.count else {
        let share = 1 / Double(there.count)
        x.add(moves, times: h.lr_global * share)
        c.add(changes, times: 1 / Double(clients))
        io.iterations += 1
        return .go(.round)
      }
      (io.client, io.tries) = (Double(there[turn]), 0)
      w.copy(x)
      return .ask("client_gradient", [w], [g], fresh: true, then: h.is("option", "I") ? .begin : .step)
    case .begin, .step:
      if phase == .begin { new.copy(g) }
      w.add(g, times: -h.lr_local)
      w.add(mine, times: h.lr_local)
      w.add(c, times: -h.lr_local)
      io.tries += 1
      if io.tries < steps { return .ask("client_gradient", [w], [g], fresh: true, then: .step) }
      let way = 1 / (steps * h.lr_local)
      if !h.is("option", "I") {
        new.set(1, mine, -1, c)
        new.add(x, times: way)
        new.add(w, times: -way)
      }
      changes.add(new)
      changes.add(mine, times: -1)
      mine.copy(new)
      moves.add(w)
      moves.add(x, times: -1)
      io.turn += 1
      return .go(.client)
    }
  }
}

/// FedSpeed: local steps with a proximal term that is corrected, along the gradient a step uphill.
///
///     client i:  w = x;  K times: g₁ = ∇f_i(w),  g₂ = ∇f_i(w + ρ·g₁/(|g₁| + 1e-7)), one sample  (or w + ρ·g₁)
///                w ← w − lr·((1−α)·g₁ + α·g₂ − c_i + (w − x)/λ);      then c_i ← c_i − (w − x)/λ
///     server:    x ← mean of w over the participants − λ·(mean of c_i over all)
///
/// Ends     max_iter.
/// Differs  nothing from FL-Simulator, whose lamb is 1/λ. That the paper normalises the look is not certain.
/// Source   Sun, Shen, Huang, Ding and Tao, 2023, arXiv:2302.10429.
struct FedSpeed: Driver {
  static let method = Method.solver(
    "fedspeed", "FedSpeed: corrected proximal local steps along the gradient a step uphill.",
    rule: """
      client: w = x;  K times: g1 = grad_i(w), g2 = grad_i(w + rho g1/(|g1| + 1e-7))
      w <- w - lr ((1 - alpha) g1 + alpha g2 - c_i + (w - x)/lam);  then c_i <- c_i - (w - x)/lam
      server: x <- mean w - lam mean c_i
      """,
    source: "Sun, Shen, Huang, Ding, Tao, 2023, arXiv:2302.10429",
    parameters: [
      Clients.number, Clients.steps, .number("lr", 0.1, .above(0), "step of a client"),
      .number("lam", 10, .above(0), "the weaker the proximal term the larger"),
      .number("rho", 0.1, .atLeast(0), "length of the look uphill"),
      .number("alpha", 1, .within(0, 1), "weight of the gradient there"),
      .flag("normalize", true, "the look is rho long, whatever the gradient"), Clients.rounds(),
    ],
    inputs: [Clients.start, Clients.participants] + Clients.result + [
      .result("corrections", "clients, n", "the corrections c_i")
    ],
    asks: [.clientGradient],
    kept: [
      .kept("w", "n", "the client's parameters"), .kept("g", "n", "its gradient"), .kept("look", "n", "uphill of w"),
      .kept("up", "n", "the gradient there"), .kept("sum", "n", "sum of what the participants found"),
      .kept("client", "", "who is at work"), .kept("turn", "", "how many were before"),
      .kept("tries", "", "local steps done"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, round, client, gradient, uphill }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], w = try io["w"], g = try io["g"], look = try io["look"], up = try io["up"]
    let corrections = try io["corrections"], sum = try io["sum"], clients = corrections.rows
    let there = try Clients.present(io, clients), c = corrections.row(try io.count("client", clients))
    let lr: Double = h.lr, lam: Double = h.lam
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.round)
    case .round:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      sum.fill(0)
      io.turn = 0
      return .go(.client)
    case .client:
      let turn = try io.count("turn", there.count)
      guard turn < there.count else {
        x.set(1 / Double(there.count), sum)
        for i in 0..<clients { x.add(corrections.row(i), times: -lam / Double(clients)) }
        io.iterations += 1
        return .go(.round)
      }
      (io.client, io.tries) = (Double(there[turn]), 0)
      w.copy(x)
      return .ask("client_gradient", [w], [g], fresh: true, then: .gradient)
    case .gradient:
      let scale = h.normalize ? h.rho / (g.norm + 1e-7) : h.rho
      look.set(1, w, scale, g)
      return .ask("client_gradient", [look], [up], then: .uphill)
    case .uphill:
      look.set(1, w, -1, x)
      w.add(g, times: -lr * (1 - h.alpha))
      w.add(up, times: -lr * h.alpha)
      w.add(c, times: lr)
      w.add(look, times: -lr / lam)
      io.tries += 1
      if io.tries < h.steps { return .ask("client_gradient", [w], [g], fresh: true, then: .gradient) }
      c.add(w, times: -1 / lam)
      c.add(x, times: 1 / lam)
      sum.add(w)
      io.turn += 1
      return .go(.client)
    }
  }
}

/// ProxSkip for variational inequalities: clients that step alone, and average where a shared coin says so.
///
///     every client:   y_i = x_i − γ·(F_i(x_i) − h_i)
///     with probability p:  x⁺ = mean(y_i − γ/p·h_i);  h_i ← h_i + p/γ·(x⁺ − y_i);  x_i ← x⁺;    else x_i ← y_i
///
/// F is the operator: of a min-max problem the gradient with the sign of the maximising players turned.
/// Ends     max_iter.
/// Differs  the coin of step k is the normal distribution function at the first draw of (seed, 0, k, 0): heads below p.
/// Source   Zhang, Choudhury, Stich and Loizou, 2023, arXiv:2306.05100.
struct ProxSkipVIP: Driver {
  static let method = Method.solver(
    "proxskip_vip", "ProxSkip for variational inequalities: local steps that average by a shared coin.",
    rule: """
      y_i = x_i - lr (F_i(x_i) - h_i);  with probability p: x+ = mean(y_i - lr/p h_i)
      h_i <- h_i + p/lr (x+ - y_i), x_i <- x+;  else x_i <- y_i
      """,
    source: "Zhang, Choudhury, Stich, Loizou, 2023, arXiv:2306.05100",
    parameters: [
      Clients.number, .number("lr", 0.1, .above(0), "step gamma"),
      .number("p", 0.1, .between(0, 1, lowOpen: true, highOpen: false), "probability of a communication"),
      .integer("max_iter", 1000, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [
      Clients.start, .result("x", "n", "the mean of the clients' points"), .result("iterations", "", "steps"),
      .result("communications", "", "how often they averaged"), .result("points", "clients, n", "the clients' points"),
      .result("controls", "clients, n", "the variates h_i, which add up to 0"),
    ],
    asks: [.clientGradient],
    kept: [.kept("g", "n", "a client's operator"), .kept("mean", "n", "the mean"), .kept("client", "", "who is asked")])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, gradient, all }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let points = try io["points"], controls = try io["controls"], g = try io["g"], mean = try io["mean"]
    let clients = points.rows, lr: Double = h.lr, p: Double = h.p
    func ask() throws(Failure) -> Verdict<Phase> {
      .ask("client_gradient", [points.row(try io.count("client", clients))], [g], fresh: true, then: .gradient)
    }
    switch phase {
    case .start:
      let x0 = try io["x0"]
      for i in 0..<clients { points.row(i).copy(x0) }
      try io["x"].copy(x0)
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      io.client = 0
      return try ask()
    case .gradient:
      let i = try io.count("client", clients), x = points.row(i)
      x.add(g, times: -lr)
      x.add(controls.row(i), times: lr)
      io.client += 1
      return io.client < Double(clients) ? try ask() : .go(.all)
    case .all:
      let draw = Random.normal(Population.key(h, io.iterations), 0)
      if p == 1 || 0.5 * erfc(-draw * 0.5.squareRoot()) < p {
        mean.fill(0)
        for i in 0..<clients {
          mean.add(points.row(i), times: 1 / Double(clients))
          mean.add(controls.row(i), times: -lr / p / Double(clients))
        }
        for i in 0..<clients {
          controls.row(i).add(mean, times: p / lr)
          controls.row(i).add(points.row(i), times: -p / lr)
          points.row(i).copy(mean)
        }
        io.communications += 1
      }
      let x = try io["x"]
      x.fill(0)
      for i in 0..<clients { x.add(points.row(i), times: 1 / Double(clients)) }
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// Decentralised descent: every worker steps from the mean of its neighbours along its own gradient.
///
///     w_j ← Σ_k P_jk·w_k − lr·∇f_j(w_j),   P doubly stochastic
///     all: 1/n;  single: I;  ring: 1/3 for itself and both neighbours;  grid: Metropolis weights of a square grid;
///     exponential: the same for the offsets 0 and all powers of two below n
///
/// `shuffle`: the workers are relabelled at random at every step. A grid has ⌊√n⌋ columns or fewer, the most that
/// divide n.
/// Ends     max_iter.
/// Differs  nothing from the card.
/// Source   Lian et al., 2017, arXiv:1705.09056; Zhu et al., 2023, arXiv:2306.02913.
struct DSGD: Driver {
  static let method = Method.solver(
    "dsgd", "Decentralised descent: every worker steps from the mean of its neighbours.",
    rule: "w_j <- sum_k P_jk w_k - lr grad_j(w_j), P doubly stochastic",
    source: "Lian et al., 2017, arXiv:1705.09056; Zhu et al., 2023, arXiv:2306.02913",
    parameters: [
      Clients.number, .number("lr", 0.1, .above(0), "step size"),
      .choice("topology", ["ring", "all", "single", "grid", "exponential"], "who mixes with whom"),
      .flag("shuffle", false, "the workers are relabelled at every step"),
      .integer("max_iter", 100, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [
      .constant("points0", "clients, n", "the workers' parameters to start with"),
      .result("x", "n", "the mean of the workers"), .result("points", "clients, n", "the workers' parameters"),
      .result("iterations", "", "steps"), .result("mixing", "clients, clients", "the matrix P"),
    ],
    asks: [.clientGradient],
    kept: [
      .kept("gradients", "clients, n", "the workers' gradients"), .kept("mixed", "clients, n", "after mixing"),
      .kept("client", "", "who is asked"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, gradient, mix }

  private func weights(_ n: Int) -> [Double] {
    var P = [Double](repeating: 0, count: n * n)
    func put(_ i: Int, _ j: Int, _ w: Double) { P[i * n + (j % n + n) % n] += w }
    for i in 0..<n {
      if h.is("topology", "all") {
        for j in 0..<n { put(i, j, 1 / Double(n)) }
      } else if h.is("topology", "ring") {
        for d in -1...1 { put(i, i + d, 1.0 / 3) }
      } else if h.is("topology", "exponential") {
        var offsets = [0], power = 1
        while power < n {
          offsets.append(power)
          power *= 2
        }
        for d in offsets { put(i, i + d, 1 / Double(offsets.count)) }
      } else if h.is("topology", "single") {
        put(i, i, 1)
      }
    }
    guard h.is("topology", "grid") else { return P }
    var columns = max(1, Int(Double(n).squareRoot()))
    while n % columns != 0 { columns -= 1 }
    func neighbours(_ i: Int) -> [Int] {
      var out: [Int] = []
      if i % columns > 0 { out.append(i - 1) }
      if i % columns < columns - 1 { out.append(i + 1) }
      if i >= columns { out.append(i - columns) }
      if i + columns < n { out.append(i + columns) }
      return out
    }
    for i in 0..<n {
      let mine = neighbours(i)
      for j in mine { put(i, j, 1 / Double(max(mine.count, neighbours(j).count) + 1)) }
      put(i, i, 1 - mine.reduce(0) { $0 + 1 / Double(max(mine.count, neighbours($1).count) + 1) })
    }
    return P
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let points = try io["points"], gradients = try io["gradients"], mixed = try io["mixed"], x = try io["x"]
    let n = points.rows
    func ask() throws(Failure) -> Verdict<Phase> {
      let i = try io.count("client", n)
      return .ask("client_gradient", [points.row(i)], [gradients.row(i)], fresh: true, then: .gradient)
    }
    func average() {
      x.fill(0)
      for i in 0..<n { x.add(points.row(i), times: 1 / Double(n)) }
    }
    switch phase {
    case .start:
      let wanted = h.integer("clients")
      guard n == wanted else {
        throw Failure(Status.shape, "`points0` must have a row for each of the \(wanted) clients, got \(n)")
      }
      points.copy(try io["points0"])
      for (i, w) in weights(n).enumerated() { try io["mixing"].p[i] = T(w) }
      average()
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      io.client = 0
      return try ask()
    case .gradient:
      io.client += 1
      return io.client < Double(n) ? try ask() : .go(.mix)
    case .mix:
      var label = Array(0..<n)
      if h.shuffle {
        let key = Population.key(h, io.iterations), draws = label.map { Random.normal(key, $0) }
        label.sort { draws[$0] < draws[$1] || (draws[$0] == draws[$1] && $0 < $1) }
      }
      let P = try io["mixing"]
      for i in 0..<n {
        let row = mixed.row(label[i])
        row.fill(0)
        for j in 0..<n where P.p[i * n + j] != 0 { row.add(points.row(label[j]), times: Double(P.p[i * n + j])) }
      }
      points.set(1, mixed, -h.lr, gradients)
      average()
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// Reptile: the mean of where training on each task leads, and a step towards it.
///
///     each task: w = x;  `inner_steps` steps of Adam on the task, support and query in turn
///     x ← x + meta_lr·mean over the tasks (w − x)
///
/// Without `reset_inner` a task goes on from where the one before ended.
/// Ends     max_iter.
/// Differs  Adam begins afresh with each task. Support and query batches are the host's: one request each, in turn.
/// Source   Nichol, Achiam and Schulman, 2018, arXiv:1803.02999.
struct Reptile: Driver {
  static let method = Method.solver(
    "reptile", "Reptile: the mean of where training on each task leads, and a step towards it.",
    rule: "each task: w = x, inner_steps steps of Adam on it;  x <- x + meta_lr mean(w - x)",
    source: "Nichol, Achiam, Schulman, 2018, arXiv:1803.02999",
    parameters: [
      .integer("clients", nil, .within(1, 0x1p24), "how many tasks there are"),
      .integer("inner_steps", 2, .atLeast(1), "steps on each task"),
      .number("meta_lr", 0.01, .between(0, 1, lowOpen: true, highOpen: false), "step towards the mean"),
      .number("inner_lr", 1e-4, .above(0), "step of Adam"), .rate("beta1", 0.9, "of Adam"),
      .rate("beta2", 0.999, "of Adam"), .eps(1e-8, "of Adam"),
      .flag("reset_inner", true, "each task starts from x"), .integer("max_iter", 100, .atLeast(0), "outer steps"),
    ],
    inputs: [Clients.start] + Clients.result, asks: [.clientGradient],
    kept: [
      .kept("w", "n", "parameters on a task"), .kept("g", "n", "gradient"), .kept("m", "n", "first moment"),
      .kept("v", "n", "second moment"), .kept("moves", "n", "sum of the ways gone"), .kept("client", "", "which task"),
      .kept("tries", "", "steps done on it"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, round, task, gradient }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], w = try io["w"], g = try io["g"], m = try io["m"], v = try io["v"], moves = try io["moves"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.round)
    case .round:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      moves.fill(0)
      w.copy(x)
      io.client = 0
      return .go(.task)
    case .task:
      guard io.client < h.clients else {
        x.add(moves, times: h.meta_lr / h.clients)
        io.iterations += 1
        return .go(.round)
      }
      if h.reset_inner { w.copy(x) }
      m.fill(0)
      v.fill(0)
      io.tries = 0
      return .ask("client_gradient", [w], [g], fresh: true, then: .gradient)
    case .gradient:
      io.tries += 1
      let b1: Double = h.beta1, b2: Double = h.beta2, t = io.tries
      for i in 0..<w.count {
        let a = Double(g.p[i]), mean = b1 * Double(m.p[i]) + (1 - b1) * a
        let square = b2 * Double(v.p[i]) + (1 - b2) * a * a
        (m.p[i], v.p[i]) = (T(mean), T(square))
        let root = (square / (1 - pow(b2, t))).squareRoot() + h.eps
        if mean != 0 { w.p[i] -= T(h.inner_lr * (mean / (1 - pow(b1, t))) / root) }
      }
      if io.tries < h.inner_steps { return .ask("client_gradient", [w], [g], fresh: true, then: .gradient) }
      moves.add(w)
      moves.add(x, times: -1)
      io.client += 1
      return .go(.task)
    }
  }
}
